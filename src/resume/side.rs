use super::{Identity, Open, Refusal, Secret};

/// What only the client's or only the server's end has.
#[derive(Debug)]
pub(super) enum Side {
    Client(Client),
    Server(Server),
}

#[derive(Debug, Default)]
pub(super) struct Client {
    /// The tunnel and the secret for the next OPEN. `None` before the first OPENED.
    pub(super) tunnel: Option<(Identity, Secret)>,
    /// That of the last OPEN.
    pub(super) attempt: u32,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) identity: Identity,
    /// The secret that OPENED carried last.
    current: Secret,
    /// The one before. The client may still have it alone until it shows that it got OPENED.
    previous: Option<Secret>,
    /// The attempt of the last OPEN.
    last: u32,
    /// The client has shown that it heard an OPENED of this tunnel.
    confirmed: bool,
}

impl Server {
    pub(super) fn new(identity: Identity, attempt: u32, current: Secret) -> Self {
        Self {
            identity,
            current,
            previous: None,
            last: attempt,
            confirmed: false,
        }
    }

    /// Whether the OPEN proves that its sender is the client, and is its newest.
    pub(super) fn check(&self, open: &Open) -> Result<(), Refusal> {
        // Both are compared whatever the first says.
        let known = (self.current == open.secret) | (self.previous == Some(open.secret));
        if !known || open.tunnel != self.identity.tunnel {
            return Err(Refusal::Unknown);
        }
        if open.attempt <= self.last {
            let (attempt, last) = (open.attempt, self.last);
            return Err(Refusal::Stale { attempt, last });
        }
        Ok(())
    }

    /// The OPEN takes the tunnel over, and is answered with the secret `next`.
    pub(super) fn rotate(&mut self, open: &Open, next: Secret) {
        self.previous = Some(open.secret);
        self.current = next;
        self.last = open.attempt;
        self.confirmed = true;
    }

    /// An acknowledgement came: the client of a new tunnel sends none before OPENED.
    pub(super) fn acknowledged(&mut self) {
        self.confirmed = true;
    }

    pub(super) const fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// A message came behind the OPEN. If that resumed the tunnel, the client got OPENED.
    #[inline]
    pub(super) fn confirm(&mut self) {
        if self.previous.is_some() {
            self.previous = None;
        }
    }
}

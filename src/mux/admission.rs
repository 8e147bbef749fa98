use alloc::string::ToString;
use alloc::vec::Vec;

use super::handshake::{self, Discard};
use super::resuming::Resuming;
use super::{
    Acceptor, Binding, Builder, ConnectError, Driver, Keeper, Kept, Mux, Timer, TokioTimer,
};
use crate::resume::{EndReason, Link, Message, Open};
use crate::session::Role;
use crate::transport::{Carrier, Received, Transport};

/// What became of a transport on which the peer resumes tunnels, from
/// [`Builder::admit`](super::Builder::admit). [`Keeper`] has the whole server.
///
/// ```
/// use kohakuriver_tunnel::mux::Admission;
///
/// fn outcome<T, C>(admission: &Admission<T, C>) -> &'static str {
///     match admission {
///         Admission::New(_) => "a new tunnel",
///         Admission::Resumed => "a tunnel goes on",
///         Admission::Refused(_) => "no such tunnel, or not for this client",
///         _ => "something new",
///     }
/// }
/// assert_eq!(outcome::<(), ()>(&Admission::Resumed), "a tunnel goes on");
/// ```
#[derive(Debug)]
#[non_exhaustive]
// Matched at once.
#[allow(clippy::large_enum_variant)]
pub enum Admission<T, C, R = TokioTimer> {
    /// The peer asks for a new tunnel.
    New(Opening<T, C, R>),
    /// The driver of its tunnel has the transport. The tunnel goes on, or has just ended: then the
    /// driver tells the peer why (END) and ends with the reason.
    Resumed,
    /// The transport was refused and closed.
    Refused(EndReason),
}

/// A new tunnel that a peer asks for. Dropping it drops the transport. [`Keeper`] has the whole
/// server.
///
/// ```
/// use kohakuriver_tunnel::mux::{Acceptor, LengthPrefixed, Opening};
/// use kohakuriver_tunnel::resume::EndReason;
/// use kohakuriver_tunnel::transport::Plain;
/// use tokio::net::TcpStream;
///
/// type Asked = Opening<LengthPrefixed<TcpStream>, Plain>;
///
/// async fn begin(opening: Asked, is_full: bool) -> Option<Acceptor> {
///     if is_full {
///         opening.refuse(EndReason::Limit, 1013, "no place is free").await;
///         return None;
///     }
///     let (acceptor, driver) = opening.acceptor();
///     tokio::spawn(driver);
///     Some(acceptor)
/// }
/// ```
#[derive(Debug)]
#[must_use = "the peer waits"]
pub struct Opening<T, C, R = TokioTimer> {
    builder: Builder<R>,
    keeper: Keeper<T>,
    binding: Binding,
    transport: T,
    carrier: C,
    open: Open,
}

impl<T, C: Carrier, R: Timer> Opening<T, C, R> {
    /// The acceptor's end, and its driver to spawn.
    pub fn acceptor(self) -> (Acceptor, Driver<T, C, R, Kept<T>>) {
        let driver = self.start(Role::Acceptor);
        (Acceptor::new(driver.tunnel()), driver)
    }

    /// The opener's end, and its driver to spawn: for a server that opens connections at its
    /// clients, as a runner at its agents.
    pub fn opener(self) -> (Mux, Driver<T, C, R, Kept<T>>) {
        let driver = self.start(Role::Opener);
        (Mux::new(driver.tunnel()), driver)
    }

    /// Refuses: sends END with `reason` and `text`, closes the transport with `code` (PROTOCOL.md
    /// section 4.1), and waits for the peer's close.
    ///
    /// Takes at most 5 s. Ends sooner if the peer goes on sending: after 16,384 messages, or 256
    /// KiB more than the client's ring holds (1 to 8 MiB). A client may have sent as much behind
    /// its OPEN, and what stays unread can destroy the reason on its way.
    pub async fn refuse(mut self, reason: EndReason, code: u16, text: &str)
    where
        T: Transport<C::Message>,
    {
        let timer = &mut self.builder.timer;
        let mut words = Vec::new();
        words.push(end(&mut self.carrier, reason, text));
        words.extend(self.carrier.close(code, text));
        let (transport, carrier) = (self.transport, self.carrier);
        let most = Discard::ring(self.open.ring);
        handshake::part(transport, carrier, timer, words, most).await;
    }

    fn start(self, role: Role) -> Driver<T, C, R, Kept<T>> {
        let Self {
            builder,
            keeper,
            binding,
            transport,
            carrier,
            open,
        } = self;
        let (timer, tunnel) = builder.resumable(role);
        let (identity, secret) = keeper.identity();
        let now = tunnel.shared.clock.timer_now();
        let link = Link::server(keeper.config(), identity, &open, secret, now);
        let kept = keeper.keep(identity, binding, &tunnel, role);
        let resuming = Resuming::new(link, kept);
        Driver::new(transport, carrier, Some(resuming), timer, tunnel)
    }
}

impl<R: Timer> Builder<R> {
    /// Waits for the peer's OPEN, for at most the
    /// [time for a greeting](Self::greeting_timeout), and finds its tunnel (PROTOCOL.md section
    /// 5.10). For a server whose handshake agreed on resumption
    /// ([`resume::choose`](crate::resume::choose)); on a route with a greeting after
    /// [`say_greeting`](Self::say_greeting).
    ///
    /// Until then the transport costs what it buffers, and nothing is read after OPEN. A peer that
    /// is refused may ask again, at most three times in all. Dropping the future drops the
    /// transport, unless its tunnel has it already.
    ///
    /// # Errors
    /// [`ConnectError`]: the peer sends no OPEN in time, something else, or closes the transport.
    pub async fn admit<T, C>(
        mut self,
        keeper: &Keeper<T>,
        mut transport: T,
        mut carrier: C,
        binding: Binding,
    ) -> Result<Admission<T, C, R>, ConnectError>
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        const ATTEMPTS: usize = 3;
        let until = self.timer.clock().now() + self.greeting_timeout;
        let mut refused = None;
        for _ in 0..ATTEMPTS {
            let open = hear(&mut transport, &mut carrier, &mut self.timer, until).await;
            let open = match (open, refused) {
                (Ok(Some(open)), _) => open,
                (Ok(None), None) => {
                    let last = end(&mut carrier, EndReason::Protocol, "OPEN was expected");
                    let timer = &mut self.timer;
                    handshake::part(transport, carrier, timer, [last], Discard::LITTLE).await;
                    return Err(ConnectError::Unexpected);
                }
                (Err(error), None) => return Err(error),
                (Ok(None) | Err(_), Some(reason)) => return Ok(Admission::Refused(reason)),
            };
            if open.tunnel == 0 {
                return Ok(Admission::New(Opening {
                    builder: self,
                    keeper: keeper.clone(),
                    binding,
                    transport,
                    carrier,
                    open,
                }));
            }
            match keeper.hand_over(open, &binding, transport).await {
                Ok(()) => return Ok(Admission::Resumed),
                Err((back, reason)) => {
                    transport = back;
                    refused = Some(reason);
                    let message = end(&mut carrier, reason, "");
                    let sent = handshake::send_by(&mut transport, &mut self.timer, message, until);
                    if !sent.await {
                        break;
                    }
                }
            }
        }
        let reason = refused.unwrap_or(EndReason::Unknown);
        handshake::part(transport, carrier, &mut self.timer, [], Discard::LITTLE).await;
        Ok(Admission::Refused(reason))
    }
}

/// The peer's OPEN; `None` if it sends something else.
async fn hear<T, C>(
    transport: &mut T,
    carrier: &mut C,
    timer: &mut impl Timer,
    until: crate::session::Instant,
) -> Result<Option<Open>, ConnectError>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    let limit = until - timer.clock().now();
    let Received::Message(message) = handshake::first(transport, carrier, timer, limit).await?
    else {
        return Ok(None);
    };
    match Message::decode(&message) {
        Ok(Message::Open(open)) => Ok(Some(open)),
        _ => Ok(None),
    }
}

fn end<C: Carrier>(carrier: &mut C, reason: EndReason, text: &str) -> C::Message {
    let text = text.to_string();
    carrier.binary(Message::End { reason, text }.to_bytes())
}

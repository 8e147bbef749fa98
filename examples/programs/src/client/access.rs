//! A port's access to the tunnel, across reconnects.

use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::Mux;
use kohakuriver_tunnel::wire::Proto;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::client::lanes::{Lanes, Seat};

/// Time between two looks at a tunnel whose peer is probed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The current tunnel of a port.
#[derive(Clone)]
pub struct Access {
    state: watch::Receiver<State>,
    wanted: Arc<watch::Sender<()>>,
}

#[derive(Clone)]
pub enum State {
    Up(Mux, Arc<Lanes>),
    /// Why it was lost, or why the last attempt failed.
    Down(String),
}

impl Access {
    /// `wanted` is notified when somebody waits for a tunnel that is down.
    pub fn new(state: watch::Receiver<State>, wanted: Arc<watch::Sender<()>>) -> Self {
        Self { state, wanted }
    }

    /// The first tunnel. Waits for it until `deadline` while it is down.
    ///
    /// # Errors
    /// Why it is down.
    pub async fn up(&mut self, deadline: Instant) -> Result<Mux, String> {
        self.wait(deadline, |mux, _| mux.clone()).await
    }

    /// A place for a new connection, on one of the tunnels of the session, if the first of them is
    /// up.
    pub fn seat_now(&self) -> Option<Seat> {
        match &*self.state.borrow() {
            State::Up(mux, lanes) if is_sound(mux) => Some(lanes.choose(Proto::Tcp)),
            _ => None,
        }
    }

    /// A place for a new connection, on one of the tunnels of the session. Waits for the first of
    /// them until `deadline` while it is down.
    ///
    /// # Errors
    /// Why it is down.
    pub async fn seat(&mut self, deadline: Instant) -> Result<Seat, String> {
        self.wait(deadline, |_, lanes| lanes.choose(Proto::Tcp))
            .await
    }

    async fn wait<T>(
        &mut self,
        deadline: Instant,
        take: impl Fn(&Mux, &Arc<Lanes>) -> T,
    ) -> Result<T, String> {
        loop {
            let (down, look_again) = match &*self.state.borrow_and_update() {
                State::Up(mux, lanes) if is_sound(mux) => {
                    return Ok(take(mux, lanes));
                }
                // It answers after a round trip, or is lost.
                State::Up(mux, _) if mux.tunnel().is_attached() => {
                    ("the host does not answer".to_owned(), LOOK_AGAIN)
                }
                State::Up(..) => ("the tunnel was just lost".to_owned(), Duration::MAX),
                State::Down(cause) => (cause.clone(), Duration::MAX),
            };
            self.wanted.send_replace(());
            let changed = timeout(look_again, self.state.changed());
            match timeout_at(deadline, changed).await {
                Ok(Ok(Ok(())) | Err(_)) => {}
                Ok(Ok(Err(_))) | Err(_) => return Err(down),
            }
        }
    }

    /// Whether the first tunnel is up and speaks version 1.
    pub fn is_v1(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up(_, lanes) if !lanes.is_v2())
    }

    /// A place for a new flow, with its tunnel, if the first tunnel is up now.
    pub fn flow_seat(&self) -> Option<(Mux, Seat)> {
        match &*self.state.borrow() {
            State::Up(first, lanes) => {
                let seat = lanes.choose(Proto::Udp);
                let mux = seat.mux.clone().unwrap_or_else(|| first.clone());
                Some((mux, seat))
            }
            State::Down(_) => {
                self.wanted.send_replace(());
                None
            }
        }
    }
}

/// Whether a new connection may be opened: the tunnel has a WebSocket, and there is no doubt about
/// it.
pub fn is_sound(mux: &Mux) -> bool {
    let tunnel = mux.tunnel();
    tunnel.is_attached() && !tunnel.is_probing()
}

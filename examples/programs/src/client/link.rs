//! What a port uses the tunnel through.

use std::sync::Arc;

use kohakuriver_tunnel::mux::Mux;
use tokio::sync::watch;
use tokio::time::Instant;

/// The tunnel of a port, whichever it is at the moment.
#[derive(Clone)]
pub struct Link {
    state: watch::Receiver<State>,
    wanted: Arc<watch::Sender<()>>,
}

#[derive(Clone)]
pub enum State {
    Up(Mux),
    /// The cause of the loss or of the last failed try.
    Down(String),
}

impl Link {
    /// `wanted` is told when somebody waits for a tunnel that is down.
    pub fn new(state: watch::Receiver<State>, wanted: Arc<watch::Sender<()>>) -> Self {
        Self { state, wanted }
    }

    /// The tunnel, waited for until `deadline` when it is down.
    ///
    /// # Errors
    /// Why it is down.
    pub async fn up(&mut self, deadline: Instant) -> Result<Mux, String> {
        loop {
            let down = match &*self.state.borrow_and_update() {
                State::Up(mux) if mux.tunnel().close_reason().is_none() => return Ok(mux.clone()),
                State::Up(_) => "the tunnel has just ended".to_owned(),
                State::Down(cause) => cause.clone(),
            };
            self.wanted.send_replace(());
            match tokio::time::timeout_at(deadline, self.state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(down),
            }
        }
    }

    /// The tunnel if it is up now.
    pub fn now(&self) -> Option<Mux> {
        match &*self.state.borrow() {
            State::Up(mux) => Some(mux.clone()),
            State::Down(_) => {
                self.wanted.send_replace(());
                None
            }
        }
    }
}

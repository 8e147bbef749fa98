//! A port's access to the tunnel, across reconnects.

use std::sync::Arc;

use kohakuriver_tunnel::mux::Mux;
use tokio::sync::watch;
use tokio::time::Instant;

/// The current tunnel of a port.
#[derive(Clone)]
pub struct Link {
    state: watch::Receiver<State>,
    wanted: Arc<watch::Sender<()>>,
}

#[derive(Clone)]
pub enum State {
    Up(Mux),
    /// Why it was lost, or why the last attempt failed.
    Down(String),
}

impl Link {
    /// `wanted` is notified when somebody waits for a tunnel that is down.
    pub fn new(state: watch::Receiver<State>, wanted: Arc<watch::Sender<()>>) -> Self {
        Self { state, wanted }
    }

    /// The tunnel. Waits for it until `deadline` while it is down.
    ///
    /// # Errors
    /// Why it is down.
    pub async fn up(&mut self, deadline: Instant) -> Result<Mux, String> {
        loop {
            let down = match &*self.state.borrow_and_update() {
                State::Up(mux) if mux.tunnel().is_attached() => return Ok(mux.clone()),
                State::Up(_) => "the tunnel was just lost".to_owned(),
                State::Down(cause) => cause.clone(),
            };
            self.wanted.send_replace(());
            match tokio::time::timeout_at(deadline, self.state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(down),
            }
        }
    }

    /// The tunnel, if it is up now.
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

//! A port's access to the tunnel, across reconnects.

use std::sync::Arc;

use kohakuriver_tunnel::mux::Mux;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::lanes::{Lanes, Seat};

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
        self.wait(deadline).await.map(|(mux, _)| mux)
    }

    /// A place for a new connection, on one of the tunnels of the session. Waits for the first of
    /// them until `deadline` while it is down.
    ///
    /// # Errors
    /// Why it is down.
    pub async fn seat(&mut self, deadline: Instant) -> Result<Seat, String> {
        self.wait(deadline).await.map(|(_, lanes)| lanes.choose())
    }

    async fn wait(&mut self, deadline: Instant) -> Result<(Mux, Arc<Lanes>), String> {
        loop {
            let down = match &*self.state.borrow_and_update() {
                State::Up(mux, lanes) if mux.tunnel().is_attached() => {
                    return Ok((mux.clone(), Arc::clone(lanes)));
                }
                State::Up(..) => "the tunnel was just lost".to_owned(),
                State::Down(cause) => cause.clone(),
            };
            self.wanted.send_replace(());
            match tokio::time::timeout_at(deadline, self.state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(down),
            }
        }
    }

    /// Whether the first tunnel is up and speaks version 1.
    pub fn is_v1(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up(_, lanes) if !lanes.is_v2())
    }

    /// The first tunnel, if it is up now.
    pub fn now(&self) -> Option<Mux> {
        match &*self.state.borrow() {
            State::Up(mux, _) => Some(mux.clone()),
            State::Down(_) => {
                self.wanted.send_replace(());
                None
            }
        }
    }
}

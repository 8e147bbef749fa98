use core::future::poll_fn;

use super::watchers::Watch;
use super::{Tunnel, TunnelError};
use crate::resume::{Resumption, Stats};

/// Whether a tunnel has a transport, and how that changed last.
///
/// A tunnel that is not [resumed](super::Builder::resume) is attached until its end.
///
/// ```
/// use kohakuriver_tunnel::mux::{Attachment, TunnelError};
///
/// fn status(attachment: &Attachment) -> String {
///     match attachment {
///         Attachment::Detached(cause) => format!("waits for a transport: {cause}"),
///         Attachment::Resumed(again) => format!("went on after {:?}", again.detached),
///         _ => "connected".into(),
///     }
/// }
/// assert_eq!(status(&Attachment::First), "connected");
/// let lost = Attachment::Detached(TunnelError::PeerDead);
/// assert!(status(&lost).starts_with("waits for a transport"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attachment {
    /// The tunnel is on its first transport.
    First,
    /// The transport was lost, and the tunnel waits for another. Contains the cause.
    Detached(TunnelError),
    /// The tunnel went on with another transport. Contains what is sent again, and the time without
    /// one, which is zero if the old one was still there.
    Resumed(Resumption),
}

/// Changes of a tunnel's [`Attachment`], from [`Tunnel::attachments`].
///
/// ```
/// use kohakuriver_tunnel::mux::{Attachment, Tunnel};
///
/// /// Says when the tunnel waits for a transport, and when it goes on, until it ends.
/// async fn watch(tunnel: Tunnel) {
///     let mut attachments = tunnel.attachments();
///     while let Some(changed) = attachments.changed().await {
///         match changed {
///             Attachment::Detached(cause) => println!("waits for a transport: {cause}"),
///             Attachment::Resumed(again) => println!("goes on after {:?}", again.detached),
///             _ => {}
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Attachments {
    tunnel: Tunnel,
    seen: u64,
}

impl Attachments {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        let seen = tunnel.shared.lock().attached.changes;
        Self { tunnel, seen }
    }

    /// The next change; `None` once the tunnel has ended. Cancel safe.
    ///
    /// If there were several changes since the last call, only the latest is returned.
    pub async fn changed(&mut self) -> Option<Attachment> {
        let mut watch = Watch::new(&self.tunnel.shared);
        let (changes, last) = poll_fn(|cx| {
            watch.poll(cx, |state| {
                let attached = &state.attached;
                let changed = attached.changes != self.seen;
                let last = match state.closed {
                    Some(_) => None,
                    None => Some(attached.last.clone()),
                };
                (changed || last.is_none()).then_some((attached.changes, last))
            })
        })
        .await;
        self.seen = changes;
        last
    }
}

/// What a tunnel's state records of its transports.
#[derive(Debug)]
pub(super) struct Attached {
    /// Number of changes.
    pub(super) changes: u64,
    pub(super) last: Attachment,
    /// Whether the peer has answered. Matters only on a resumable tunnel.
    pub(super) confirmed: bool,
    /// Whether the driver knows the tunnel as idle.
    pub(super) idle: bool,
    /// Bytes kept for the peer.
    pub(super) ring: usize,
    pub(super) stats: Stats,
}

impl Default for Attached {
    fn default() -> Self {
        Self {
            changes: 0,
            last: Attachment::First,
            confirmed: true,
            idle: true,
            ring: 0,
            stats: Stats::default(),
        }
    }
}

impl Attached {
    pub(super) const fn is_detached(&self) -> bool {
        matches!(self.last, Attachment::Detached(_))
    }

    pub(super) fn change(&mut self, to: Attachment) {
        self.changes += 1;
        self.last = to;
    }
}

use core::fmt;

use bytes::Bytes;

use super::{Carrier, Received};

/// A [`Carrier`] of two closures, for a stack that needs no more than that.
///
/// It has no [`probe`](Carrier::probe).
///
/// ```
/// use bytes::Bytes;
/// use kohakuriver_tunnel::transport::{Carrier, Received, carrier_fn};
///
/// // A "stack" whose messages are `Vec<u8>`, an empty one being its keepalive.
/// let mut carrier = carrier_fn(
///     |message: Bytes| Vec::from(message),
///     |message: Vec<u8>| match message.is_empty() {
///         true => Received::Skip,
///         false => Received::Message(message.into()),
///     },
/// );
/// assert_eq!(carrier.wrap("hi".into()), b"hi");
/// assert_eq!(carrier.unwrap(vec![]), Received::Skip);
/// ```
pub fn carrier_fn<M, W, U>(wrap: W, unwrap: U) -> CarrierFn<W, U>
where
    W: FnMut(Bytes) -> M,
    U: FnMut(M) -> Received<M>,
{
    CarrierFn { wrap, unwrap }
}

/// Made by [`carrier_fn`].
#[derive(Clone, Copy)]
pub struct CarrierFn<W, U> {
    wrap: W,
    unwrap: U,
}

impl<M, W, U> Carrier for CarrierFn<W, U>
where
    W: FnMut(Bytes) -> M,
    U: FnMut(M) -> Received<M>,
{
    type Message = M;

    fn wrap(&mut self, message: Bytes) -> M {
        (self.wrap)(message)
    }

    fn unwrap(&mut self, message: M) -> Received<M> {
        (self.unwrap)(message)
    }
}

impl<W, U> fmt::Debug for CarrierFn<W, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CarrierFn").finish_non_exhaustive()
    }
}

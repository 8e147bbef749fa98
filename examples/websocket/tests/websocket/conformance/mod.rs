//! The cases of the Autobahn test suite for framing, control frames, fragmentation, UTF-8, limits
//! and closing, in both roles over a real socket. A raw peer writes the frames, our end echoes
//! messages, and the frames that the peer reads back are compared one by one. The numbers are those
//! of the suite.

mod closing;
mod control;
mod fragments;
mod framing;
mod peer;
mod text;

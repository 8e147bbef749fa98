//! Listening sockets that take a thousand connections at once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// More than are opened at once. With less the kernel resets some.
const BACKLOG: i32 = 4096;

pub fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A socket whose buffers have that size and do not grow, or the kernel's.
pub fn new(buffer: Option<usize>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(buffer) = buffer {
        socket.set_recv_buffer_size(buffer)?;
        socket.set_send_buffer_size(buffer)?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Connections inherit the size of the buffers.
pub fn listen(port: u16, buffer: Option<usize>) -> io::Result<TcpListener> {
    let socket = new(buffer)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address(port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

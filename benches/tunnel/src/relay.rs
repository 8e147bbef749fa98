//! A simple and fast bare TCP relay: a thread for each direction, 64 KiB at a time.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;

use crate::pattern::PIECE;
use crate::socket;

/// Relays until the process ends.
pub fn serve(port: u16, target: u16) -> io::Result<()> {
    let listener = socket::listen(port, None)?;
    for near in listener.incoming() {
        let near = near?;
        let thread = thread::Builder::new().stack_size(256 << 10);
        thread.spawn(move || join(near, target))?;
    }
    Ok(())
}

fn join(near: TcpStream, target: u16) -> io::Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (from, to) = (far.try_clone()?, near.try_clone()?);
    let thread = thread::Builder::new().stack_size(256 << 10);
    thread.spawn(move || copy(from, to))?;
    copy(near, far);
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; PIECE];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

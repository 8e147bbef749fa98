//! Hints that the machine or this process was asleep, so that the connections may be dead.
//!
//! On Linux the real-time clock jumps when the machine wakes up. A process that was stopped and
//! goes on gets SIGCONT. Where there is neither, the keepalive finds out.

use std::io;

use tokio::sync::watch;

/// Watches for the hints in a task, as long as the program runs. Whoever subscribes receives them.
pub fn watched() -> watch::Sender<()> {
    let hints = watch::Sender::new(());
    tokio::spawn(watch_for(hints.clone()));
    hints
}

async fn watch_for(hints: watch::Sender<()>) {
    let hint = || {
        tracing::debug!("the machine or the process was asleep: looking at the connections");
        hints.send_replace(());
    };
    let stops = |what: &str, ended: io::Result<()>| {
        if let Err(error) = ended {
            tracing::debug!("{what} is not watched: {error}");
        }
    };
    let jumps = async { stops("the clock", on_clock_jumps(hint).await) };
    let continued = async { stops("SIGCONT", on_continued(hint).await) };
    tokio::join!(jumps, continued);
}

/// Calls `then` each time the real-time clock is set, as at a wake-up.
#[cfg(target_os = "linux")]
async fn on_clock_jumps(then: impl Fn()) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::unix::AsyncFd;

    /// Seconds since 1970, in the year 5138: only a change of the clock ends the wait.
    const NEVER: i64 = 100_000_000_000;

    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    // Its successor is unsafe, for types that do not own their descriptor. This one does.
    #[allow(deprecated)]
    let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Realtime, flags)?)?;
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let never = Itimerspec {
        it_interval: zero,
        it_value: Timespec {
            tv_sec: NEVER,
            ..zero
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    loop {
        match timerfd_settime(timer.get_ref(), flags, &never) {
            // The clock was set meanwhile; the timer runs.
            Ok(_) | Err(Errno::CANCELED) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = timer.readable().await?;
        match rustix::io::read(timer.get_ref(), &mut [0; 8]) {
            Err(Errno::CANCELED) => then(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        ready.clear_ready();
    }
}

#[cfg(not(target_os = "linux"))]
async fn on_clock_jumps(_then: impl Fn()) -> io::Result<()> {
    Ok(())
}

/// Calls `then` each time the process goes on after it was stopped.
#[cfg(unix)]
async fn on_continued(then: impl Fn()) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut continued = signal(SignalKind::from_raw(libc::SIGCONT))?;
    while continued.recv().await.is_some() {
        then();
    }
    Ok(())
}

#[cfg(not(unix))]
async fn on_continued(_then: impl Fn()) -> io::Result<()> {
    Ok(())
}

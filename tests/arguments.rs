//! Arguments that make no sense are refused with one line that names them and says what to do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::process::Stdio;
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

use tunnel_test_support::LIMIT;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::files::Folder;
use tunnel_test_support::program::{self, Program};

const PLACE: &str = "42=box@http://127.0.0.1:1";
const ANY: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// The one line that a program with exit code 2 prints.
fn refusal(name: &str, args: &[&str], environment: &[(&str, &str)]) -> String {
    let mut program = Program::start_with(name, args, environment);
    assert_eq!(program.exit(LIMIT), 2, "{name} {args:?}");
    program.complaint(&format!("{name}: "));
    let said = program.stderr();
    assert_eq!(said.len(), 1, "{name} {args:?}: {said:?}");
    said[0].clone()
}

#[test]
fn what_contradicts_itself_is_refused() {
    let other = "42=box@http://127.0.0.1:2";
    let url = "ws://x/ws/tunnel/mine";
    for (name, args, said) in [
        (
            "host",
            &["--task", PLACE, "--task", other][..],
            &["--task 42", "twice"][..],
        ),
        (
            "host",
            &["--task", PLACE, "--task", PLACE],
            &["--task 42", "twice"],
        ),
        (
            "host",
            &["--api", "nope"],
            &["--api", "\"nope\"", "http://"],
        ),
        ("host", &["--api", "http://no pe"], &["--api"]),
        ("host", &["--api", "http://x?y=z"], &["--api", "query"]),
        (
            "host",
            &["--task", "42=box@http://a,b:1"],
            &["--task 42", "a,b"],
        ),
        (
            "host",
            &["--task", PLACE, "--max-sessions", "0"],
            &["--max-sessions", "0"],
        ),
        (
            "runner",
            &["--target", "a=1.2.3.4", "--target", "a=1.2.3.5"],
            &["--target a", "twice"],
        ),
        ("runner", &["--max-sessions", "0"], &["--max-sessions", "0"]),
        (
            "forward",
            &["42", "80", "--threads", "0"],
            &["--threads", "'0'"],
        ),
        (
            "forward",
            &["42", "80", "--tunnels", "0"],
            &["--tunnels", "'0'"],
        ),
        ("runner", &["--threads", "0"], &["--threads", "'0'"]),
        ("runner", &["--threads", "x"], &["--threads", "'x'"]),
        ("runner", &["--threads", "100000"], &["--threads", "256"]),
        (
            "host",
            &["--task", PLACE, "--threads", "0"],
            &["--threads", "'0'"],
        ),
        ("runner", &["--max-agents", "0"], &["--max-agents", "0"]),
        (
            "agent",
            &["--runner-url", url, "--container-id", "yours"],
            &["mine", "yours", "leave"],
        ),
        (
            "agent",
            &["--runner-url", "ws://x/ws/tunnel/", "--container-id", "a"],
            &["/ws/tunnel/"],
        ),
        (
            "agent",
            &["--runner-url", "ws://x/ws/tunnel/a/b"],
            &["/ws/tunnel/a/b"],
        ),
        (
            "agent",
            &["--runner-url", "ws://x?a=b", "--container-id", "a"],
            &["query"],
        ),
        (
            "agent",
            &[
                "--runner-url",
                "ws://x",
                "--container-id",
                "a",
                "--reconnect-delay",
                "0",
            ],
            &["--reconnect-delay", "'0'", "from 0.01"],
        ),
        (
            "agent",
            &[
                "--runner-url",
                "ws://x",
                "--container-id",
                "a",
                "--ca",
                "/dev/null",
            ],
            &["--ca", "wss://"],
        ),
        (
            "agent",
            &["--runner-url", "wss://x", "--container-id", "a"],
            &["wss://", "--ca FILE"],
        ),
        (
            "forward",
            &["42", "80", "--host", "ws://x", "--ca", "/dev/null"],
            &["--ca", "wss://"],
        ),
        ("forward", &["42", "80", "--host", "ws://x?y=z"], &["query"]),
        (
            "forward",
            &["--host", "ws://x/ws/forward/42/80?key=y"],
            &["query", "?proto="],
        ),
        (
            "forward",
            &[
                "--host",
                "ws://x/ws/forward/42/80?proto=udp",
                "--proto",
                "tcp",
            ],
            &["protocol", "twice"],
        ),
        (
            "forward",
            &["--wait-for-task", "600", "42", "8888"],
            &["write --wait-for-task=600"],
        ),
        (
            "forward",
            &["42", "8888", "--wait-for-task", "600"],
            &["write --wait-for-task=600"],
        ),
        (
            "forward",
            &["42", "8888", "--remote-port", "9999"],
            &["twice", "8888", "--remote-port 9999"],
        ),
        (
            "forward",
            &[
                "--host",
                "ws://x/api/tunnel/42",
                "80",
                "--remote-port",
                "81",
            ],
            &["twice"],
        ),
        (
            "runner",
            &["--no-resume", "--max-detached", "10"],
            &["--no-resume", "--max-detached"],
        ),
        (
            "runner",
            &["--no-resume", "--max-detached-per-container", "10"],
            &["--no-resume", "--max-detached-per-container"],
        ),
        (
            "runner",
            &["--no-resume", "--max-detached-per-address", "10"],
            &["--no-resume", "--max-detached-per-address"],
        ),
        ("forward", &["--no-resume"], &["no task"]),
        (
            "forward",
            &[
                "42",
                "80",
                "--resume-first-ring",
                "2049",
                "--resume-ring",
                "2",
            ],
            &["--resume-first-ring 2049", "--resume-ring 2", "lower"],
        ),
        (
            "forward",
            &["42", "80", "--no-resume", "--resume-keep", "5"],
            &["--no-resume", "--resume-keep"],
        ),
        (
            "runner",
            &["--no-resume", "--resume-ring", "5"],
            &["--no-resume", "--resume-ring"],
        ),
        (
            "forward",
            &["42", "80", "--no-resume", "--resume-timeout", "5"],
            &["--no-resume", "--resume-timeout"],
        ),
        ("forward", &["--tunnels", "2"], &["no task"]),
        ("forward", &["42", "80", "--host", "ws://a..b"], &["a..b"]),
        (
            "forward",
            &["42", "80", "8080:80", "--udp-peers", "0"],
            &["--udp-peers", "0"],
        ),
    ] {
        let line = refusal(name, args, &[]);
        for part in said {
            assert!(
                line.contains(part),
                "{name} {args:?}: {part:?} is not in {line:?}"
            );
        }
    }
}

/// What a program prints for people, in a terminal of this width or in none.
fn help(name: &str, args: &[&str], columns: Option<&str>) -> String {
    let mut command = program::command(name);
    command
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    match columns {
        Some(columns) => command.env("COLUMNS", columns),
        None => command.env_remove("COLUMNS"),
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{name} {args:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_help_fits_a_terminal() {
    for (name, args) in [
        ("forward", &[][..]),
        ("host", &[]),
        ("runner", &[]),
        ("runner", &["agent-token"]),
        ("agent", &[]),
    ] {
        for (flag, columns, width) in [
            ("--help", None, 100),
            ("-h", None, 100),
            ("--help", Some("300"), 100),
            ("--help", Some("80"), 80),
        ] {
            let text = help(name, &[args, &[flag]].concat(), columns);
            assert!(text.contains("Usage:"), "{text}");
            // The usage is not wrapped.
            let is_usage = |line: &&str| line.contains("<task_id> --remote-port N");
            for line in text.lines().filter(|line| width == 100 || !is_usage(line)) {
                let columns = line.chars().count();
                assert!(columns <= width, "{name} {flag}: {columns} columns: {line}");
            }
        }
    }
}

#[test]
fn the_variable_of_the_tunnels_may_be_empty() {
    let named = "TUNNEL_ENABLED";
    Program::start_with("runner", &ANY, &[(named, "")]).address();
    let line = refusal("runner", &ANY, &[(named, "maybe")]);
    assert!(line.contains(named), "{line}");
}

#[test]
fn no_library_speaks_to_the_user() {
    let task = ["--task", PLACE];
    let agent = ["--runner-url", "ws://x", "--container-id", "a"];
    for (name, args, more, said) in [
        (
            "host",
            &task[..],
            ["--listen", "localhost:8000"],
            "[::]:8000",
        ),
        ("host", &task, ["--max-sessions", "0"], "1 or more"),
        ("host", &task, ["--max-per-address", "x"], "1 or more"),
        (
            "runner",
            &[],
            ["--listen", ":8000"],
            "an IP address and a port",
        ),
        ("runner", &[], ["--max-agents", "0"], "1 or more"),
        ("runner", &[], ["--max-detached", "0"], "1 or more"),
        ("agent", &agent, ["--reconnect-delay", "5s"], "seconds"),
        ("agent", &agent, ["--max-reconnect", "-"], "attempts"),
    ] {
        let line = refusal(name, &[args, &more].concat(), &[]);
        assert!(line.contains(said) && line.contains(more[0]), "{line}");
        for jargon in ["syntax", "literal", "non-zero", "digit"] {
            assert!(!line.contains(jargon), "{line}");
        }
    }
}

#[test]
fn more_udp_peers_than_the_ports_can_have_are_reported() {
    let ports = [
        "42",
        "5300:0/udp",
        "5301:0/udp",
        "--host",
        "ws://127.0.0.1:1",
    ];
    for (peers, is_told) in [(Some("3000"), true), (Some("2048"), false), (None, false)] {
        let flag = peers.map(|peers| ["--udp-peers", peers]);
        let args = [&ports[..], flag.as_ref().map_or(&[], |flag| flag)].concat();
        let mut forward = Program::start("forward", &args);
        assert_eq!(forward.exit(LIMIT), 3);
        let lines = forward.stderr();
        let told = lines.iter().filter(|line| line.contains("--udp-peers"));
        assert_eq!(told.count(), usize::from(is_told), "{lines:?}");
        if is_told {
            forward.complaint("--udp-peers 3000 is lowered to 2048");
        }
    }
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value) in [
        ("KOHAKURIVER_HOST", "cluster:9000"),
        ("KOHAKURIVER_PORT", "http"),
        ("KOHAKURIVER_HOST", "ftp://cluster"),
    ] {
        let line = refusal("forward", &["42", "80"], &[(name, value)]);
        assert!(line.contains(name), "{line}");
    }
}

#[test]
fn a_local_address_of_another_machine_is_called_that() {
    // For documentation only (RFC 5737).
    for port in ["80", "80/udp"] {
        let args = ["42", port, "--local-port", "0", "--local-host", "192.0.2.1"];
        let mut forward = Program::start("forward", &args);
        assert_eq!(forward.exit(LIMIT), 1);
        forward.complaint("an address of this machine with --local-host");
    }
}

#[test]
fn nonsense_arguments_are_exit_code_2_and_one_line() {
    for args in [
        &["42"][..],
        &["42", "http"],
        &["42", "0"],
        &["42", "70000"],
        &["42", "80/sctp"],
        &["42", "80:x"],
        &["4 2", "80"],
        &["42", "80", "81", "--local-port", "90"],
        &["42", "80:90", "--local-port", "90"],
        &["42", "80:90", "81:90"],
        &["42", "80", "--proto", "sctp"],
        &["42", "80", "--local-host", "nowhere"],
        &["42", "80", "--host", "ftp://x"],
        &["42", "80", "--host", "ws://x:port"],
        &["--host", "ws://x/api/tunnel/42"],
        &["--local-port", "80"],
        &["--nonsense"],
        &["--token-file", "/dev/null"],
        &["--cert", "/dev/null", "--key", "/dev/null"],
        &["--host", "ws://x/ws/forward/42/none"],
        &["--host", "ws://x/ws/forward/42/80", "42", "80"],
        &["42", "80", "--token-file", "/does/not/exist"],
    ] {
        refusal("forward", args, &[]);
    }
    for (name, args) in [
        ("agent", &[][..]),
        ("agent", &["--runner-url", "ws://x"]),
        ("agent", &["--runner-url", "x y", "--container-id", "box"]),
        (
            "agent",
            &["--runner-url", "ws://x", "--container-id", "a/b"],
        ),
        ("runner", &["--target", "box"]),
        ("runner", &["--target", "box=1.2.3.4:80"]),
        ("runner", &["--listen", "8001"]),
    ] {
        refusal(name, args, &[]);
    }
}

#[test]
fn a_secret_in_a_wrong_url_is_not_repeated() {
    let task = |url: &str| format!("42=box@{url}");
    for url in [
        "http://me:s3cret@x:8000",
        "http://me:s3/cret@x",
        "http://x:port?key=s3cret",
        "//s3cret@x",
        "ws://x/#s3cret",
    ] {
        for (name, args) in [
            ("forward", &["--host", url, "42", "80"][..]),
            ("agent", &["--runner-url", url, "--container-id", "box"]),
            ("host", &["--api", url]),
            ("host", &["--task", &task(url)]),
            ("host", &["--task", &format!("42={url}")]),
        ] {
            let mut program = Program::start(name, args);
            assert_eq!(program.exit(LIMIT), 2, "{name} {args:?}");
            let told = program.complaint(&format!("{name}: "));
            assert!(!told.contains("cret"), "{told}");
            assert_eq!(program.stderr().len(), 1);
        }
    }
}

#[test]
fn an_agent_takes_its_name_from_either_or_both() {
    for args in [
        &["--runner-url", "ws://127.0.0.1:1/ws/tunnel/box"][..],
        &[
            "--runner-url",
            "ws://127.0.0.1:1/ws/tunnel/box",
            "--container-id",
            "box",
        ],
    ] {
        let more = ["--max-reconnect", "1"];
        let mut agent = Program::start("agent", &[args, &more[..]].concat());
        assert_eq!(agent.exit(LIMIT), 3, "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_token_that_everybody_can_read_or_that_is_none_is_refused() {
    let folder = Folder::new();
    let flags = [
        ("host", "--token-file", &["--task", PLACE][..]),
        ("runner", "--token-file", &[]),
        ("runner", "--agent-token-file", &[]),
        (
            "agent",
            "--token-file",
            &["--runner-url", "ws://x", "--container-id", "a"],
        ),
        ("forward", "--token-file", &["42", "80"]),
    ];
    let open = [0o644, 0o602, 0o601].map(|mode| {
        let name = format!("{mode:o}");
        let path = folder.write(&name, "s3cret\n", mode);
        (path, format!("(mode {name})"))
    });
    let large = large(&folder);
    for (name, flag, args) in flags {
        let with = |file: &str| refusal(name, &[args, &[flag, file]].concat(), &[]);
        for (open, mode) in &open {
            let line = with(open);
            assert!(line.contains(mode) && line.contains("chmod 600"), "{line}");
            assert!(!line.contains("s3cret"), "{line}");
        }
        let line = with(&large);
        assert!(line.contains("more than 4096 bytes"), "{line}");
    }
    for (name, variable, args) in [
        ("host", "KOHAKURIVER_TUNNEL_TOKEN", &["--task", PLACE][..]),
        ("runner", "KOHAKURIVER_TUNNEL_AGENT_TOKEN", &[]),
        ("forward", "KOHAKURIVER_TUNNEL_TOKEN", &["42", "80"]),
    ] {
        let line = refusal(name, args, &[(variable, "")]);
        assert!(line.contains(variable) && line.contains("empty"), "{line}");
    }
    // As a file mounted for a group.
    let group = folder.write("group", "s3cret\n", 0o440);
    let args = [&ANY[..], &["--token-file", &group]].concat();
    Program::start("runner", &args).address();
}

#[test]
fn a_task_that_is_at_two_places_is_told_once() {
    let folder = Folder::new();
    let other = "http://127.0.0.1:2";
    let tasks = format!("[tasks]\n42 = \"box@{other}\"\n43 = \"box@{other}\"\n");
    let file = folder.write("tasks.toml", tasks, 0o600);
    let same = format!("43=box@{other}");
    let args = ["--task", PLACE, "--task", &same, "--tasks", &file];
    let mut host = Program::start("host", &[&ANY[..], &args].concat());
    let said = format!("{file} has other places than --task for 42: those of --task count");
    host.complaint(&said);
    folder.write(
        "tasks.toml",
        "[tasks]\n42 = \"box@http://127.0.0.1:3\"\n44 = \"x@y\"",
        0o600,
    );
    let url = format!("ws://{}", host.address());
    let mut forward = Program::start(
        "forward",
        &["--host", &url, "44", "80", "--local-port", "0"],
    );
    forward.exit(LIMIT);
    host.complaint(&format!("read {file} again"));
    host.signal("TERM");
    host.exit(LIMIT);
    host.expect_lines(&said, 1);
}

/// A sparse file of 1 GiB.
fn large(folder: &Folder) -> String {
    let path = folder.write("large", "", 0o600);
    let file = std::fs::File::options().write(true).open(&path);
    file.unwrap().set_len(1 << 30).unwrap();
    path
}

#[test]
fn a_file_that_is_far_too_large_is_not_read() {
    let folder = Folder::new();
    let large = large(&folder);
    let files = Certificates::self_signed(&["localhost"], |_| {});
    let agent = ["--runner-url", "wss://x", "--container-id", "a"];
    for (name, args) in [
        ("host", &["--tasks", &large][..]),
        ("host", &["--task", PLACE, "--ca", &large]),
        ("runner", &["--cert", &large, "--key", &files.key]),
        ("runner", &["--cert", &files.cert, "--key", &large]),
        ("agent", &[&agent[..], &["--ca", &large]].concat()),
        (
            "forward",
            &["42", "80", "--host", "wss://x", "--ca", &large],
        ),
    ] {
        let line = refusal(name, args, &[]);
        let said = format!("{large}: it has 1073741824 bytes, more than 16777216 bytes");
        assert!(line.contains(&said), "{line}");
    }
}

/// The system does not know its size.
#[cfg(target_os = "linux")]
#[test]
fn a_file_without_an_end_is_refused() {
    let folder = Folder::new();
    let fifo = folder.path("endless");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let path = fifo.clone();
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        let mut file = std::fs::File::options().write(true).open(path).unwrap();
        while file.write_all(&[b'a'; 1 << 16]).is_ok() {}
    });
    let line = refusal("host", &["--tasks", &fifo], &[]);
    assert!(line.contains("it has more than 16777216 bytes"), "{line}");
    writer.join().unwrap();
}

/// A writer of this pipe, once it has a reader.
#[cfg(target_os = "linux")]
fn opened_too(fifo: &str) -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;

    const O_NONBLOCK: i32 = 0o4000;
    let end = Instant::now() + LIMIT;
    loop {
        // Without a reader this is refused, and does not wait for one.
        let opened = std::fs::File::options()
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open(fifo);
        match opened {
            Ok(file) => return file,
            Err(error) => assert!(Instant::now() < end, "nobody reads {fifo}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The program hears no signal while it reads, so it must not have taken them over.
#[cfg(target_os = "linux")]
#[test]
fn a_token_that_is_waited_for_keeps_no_program_from_ending() {
    let folder = Folder::new();
    let fifo = folder.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    for (name, args) in [
        ("host", &["--task", PLACE][..]),
        ("forward", &["42", "80", "--local-port", "0"]),
    ] {
        let args = [args, &["--token-file", &fifo]].concat();
        let mut program = Program::start(name, &args);
        let _writer = opened_too(&fifo);
        program.signal("TERM");
        program.exit(LIMIT);
    }
}

#[cfg(unix)]
#[test]
fn a_key_that_everybody_can_read_is_refused() {
    let folder = Folder::new();
    let key = folder.write("key", "-----BEGIN", 0o604);
    let files = Certificates::self_signed(&["localhost"], |_| {});
    let line = refusal("runner", &["--cert", &files.cert, "--key", &key], &[]);
    assert!(line.contains("chmod 600"), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_hang_up_ends_each_program_well_unless_it_is_ignored() {
    let chain = tunnel_test_support::chain::Chain::direct();
    let url = chain.host_url();
    let runner_url = format!("ws://{}", chain.runner.address());
    for (name, args, ready) in [
        (
            "host",
            &["--listen", "127.0.0.1:0", "--task", PLACE][..],
            None,
        ),
        ("runner", &ANY, None),
        (
            "forward",
            &["--host", &url, "42", "1", "--local-port", "0"],
            None,
        ),
        (
            "agent",
            &["--runner-url", &runner_url, "--container-id", "box"],
            Some("registered at"),
        ),
    ] {
        let start = |signal: &str| {
            let mut command = program::command_through("env", &[signal], name);
            command.args(args);
            let program = Program::spawn(name, command);
            match ready {
                Some(line) => program.complaint(line),
                None => program.address(),
            };
            program
        };
        let mut program = start("--default-signal=HUP");
        program.signal("HUP");
        assert_eq!(program.exit(LIMIT), 0, "{name}");
        program.complaint("SIGHUP: ending");

        let mut program = start("--ignore-signal=HUP");
        program.signal("HUP");
        std::thread::sleep(Duration::from_millis(200));
        assert!(program.is_running(), "{name}");
        program.signal("TERM");
        assert_eq!(program.exit(LIMIT), 0, "{name}");
        program.complaint("SIGTERM: ending");
    }
}

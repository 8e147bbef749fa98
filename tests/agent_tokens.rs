//! A token for each container: root in one container cannot register as another.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use tunnel_test_support::LIMIT;
use tunnel_test_support::program::Program;

const KEY: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

const AGENT_KEY: &str = "KOHAKURIVER_TUNNEL_AGENT_KEY";
const TOKEN: &str = "KOHAKURIVER_TUNNEL_TOKEN";
const SHARED: &str = "KOHAKURIVER_TUNNEL_AGENT_TOKEN";

fn token_of(container: &str) -> String {
    let mut runner =
        Program::start_with("runner", &["agent-token", container], &[(AGENT_KEY, KEY)]);
    assert_eq!(runner.exit(LIMIT), 0);
    runner.line("")
}

fn agent(runner: &Program, container: &str, token: &str) -> Program {
    let url = format!("ws://{}", runner.address());
    let args = ["--runner-url", &url, "--container-id", container];
    Program::start_with("agent", &args, &[(TOKEN, token)])
}

#[test]
fn a_token_registers_its_own_container_alone() {
    let runner = Program::start_with(
        "runner",
        &["--listen", "127.0.0.1:0"],
        &[(AGENT_KEY, KEY), (TOKEN, "of-clients")],
    );
    let own = token_of("mine");
    assert_ne!(own, token_of("theirs"));
    agent(&runner, "mine", &own).complaint("registered at");

    for (container, token) in [("theirs", &*own), ("Mine", &own), ("mine", "of-clients")] {
        let mut impostor = agent(&runner, container, token);
        assert_eq!(impostor.exit(LIMIT), 3, "{container} with {token}");
        let line = impostor.complaint("401");
        assert!(line.contains("runner agent-token NAME"), "{line}");
        assert!(line.contains("--token-file"), "{line}");
    }
    runner.complaint("path=\"/ws/tunnel/theirs\"");
    let log = runner.stderr().join("\n");
    assert!(!log.contains(&own) && !log.contains(KEY), "{log}");
}

#[test]
fn the_shared_token_goes_on_beside_them() {
    let runner = Program::start_with(
        "runner",
        &["--listen", "127.0.0.1:0"],
        &[(AGENT_KEY, KEY), (SHARED, "shared-by-all")],
    );
    agent(&runner, "one", "shared-by-all").complaint("registered at");
    agent(&runner, "two", &token_of("two")).complaint("registered at");
}

#[test]
fn what_is_no_key_or_no_name_is_said() {
    let weak = "0000000000000000000000000000000000000000";
    for (args, key, said) in [
        (&["agent-token", "box"][..], Some("short"), "openssl rand"),
        (&["agent-token", "box"], Some(weak), "openssl rand"),
        (&["agent-token", "box"], Some(""), "is empty"),
        (&["agent-token", "box"], None, "--agent-key-file"),
        (&["agent-token", "../box"], Some(KEY), "no container name"),
        (&["--listen", "127.0.0.1:0"], Some("short"), "openssl rand"),
    ] {
        let environment: Vec<_> = key.iter().map(|key| (AGENT_KEY, *key)).collect();
        let mut runner = Program::start_with("runner", args, &environment);
        assert_eq!(runner.exit(LIMIT), 2, "{args:?}");
        let line = runner.complaint(said);
        assert!(
            key.is_none_or(|key| key.is_empty() || !line.contains(key)),
            "{line}"
        );
    }
}

#[test]
fn a_key_that_is_a_token_too_is_refused() {
    for variable in [TOKEN, SHARED] {
        let secrets = [(AGENT_KEY, KEY), (variable, KEY)];
        let mut runner = Program::start_with("runner", &["--listen", "127.0.0.1:0"], &secrets);
        assert_eq!(runner.exit(LIMIT), 2, "{variable}");
        let line = runner.complaint("is also a token");
        assert!(line.contains(AGENT_KEY) && !line.contains(KEY), "{line}");
    }
}

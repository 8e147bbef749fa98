//! The host's command line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

use crate::common::args::{LogArgs, LogFormat, parse_listen, twice};
use crate::common::ceilings::{HostCeilings, usable};
use crate::common::front::FrontArgs;
use crate::common::memory::MemoryArgs;
use crate::common::program::{Basics, Failure, Process};
use crate::common::proxies::Proxies;
use crate::common::threads::ThreadArgs;
use crate::common::tls::{ClientTlsArgs, Dialer, public_roots};
use crate::common::url::{Url, check_name};
use crate::host::proxy::{ClusterApi, Settings, TaskFile, TaskPlace};

#[derive(Parser, Debug)]
#[command(
    name = "host",
    version,
    max_term_width = 100,
    about = "Finds out on which runner a task is and joins port-forwarding clients to it.",
    after_help = "Examples:
  host --task 42=kohakuriver-vps-42@http://127.0.0.1:8001
  host --listen 0.0.0.0:8000 --tasks tasks.toml   # read again when it changes
  host --api http://cluster:8000     # asks it with the caller's own token

tasks.toml:
  [tasks]
  42 = \"kohakuriver-vps-42@http://10.0.0.7:8001\"

Then, on a laptop: forward --host ws://this-machine:8000 42 8888

Exit codes: 0 ended as asked, 1 failed while running, 2 wrong usage."
)]
pub struct Args {
    /// Address to serve on; port 0 takes a free one and prints it.
    #[arg(
        long,
        default_value = "127.0.0.1:8000",
        value_name = "ADDRESS:PORT",
        value_parser = parse_listen
    )]
    pub listen: SocketAddr,

    /// A task and where it runs: TASK=CONTAINER@RUNNER-URL; may be repeated.
    #[arg(long = "task", value_name = "TASK")]
    tasks: Vec<String>,

    /// File with tasks; read again whenever it changes. Those of --task count before it.
    #[arg(long = "tasks", value_name = "FILE")]
    task_file: Option<PathBuf>,

    /// Base URL of a deployed KohakuRiver host, which is queried about each task with the token of
    /// the caller. A caller without a token gets 401 for tasks that are not listed here. Runners do
    /// not get that token, but the host's own if it has one.
    #[arg(long, value_name = "URL")]
    api: Option<String>,

    #[command(flatten)]
    front: FrontArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    threads: ThreadArgs,

    #[command(flatten)]
    tls: ClientTlsArgs,

    #[command(flatten)]
    log: LogArgs,
}

impl Args {
    /// Settings of the proxy.
    ///
    /// # Errors
    /// No source of tasks was given, or the task file or the token file cannot be used.
    pub fn settings(&self, process: &Process) -> Result<Settings, Failure> {
        let proxies = Proxies::from_environment();
        let check = |url: &Url| proxies.before(url).map(drop).map_err(Failure::usage);
        let (roots, names) = (Some(public_roots as _), process.names.clone());
        let dialer = Dialer::new(&self.tls, None, roots, proxies.clone(), names)?;
        // Not parsed by clap, which would repeat a password in a wrong URL.
        let tasks: Result<Vec<_>, _> = self.tasks.iter().map(|task| parse_task(task)).collect();
        let tasks = tasks.map_err(Failure::usage)?;
        if let Some(task) = twice(tasks.iter().map(|(task, _)| task.as_str())) {
            return Err(Failure::usage(format!(
                "--task {task} is given twice: a task is in one place, leave one of them out"
            )));
        }
        for (_, place) in &tasks {
            check(&place.runner)?;
        }
        let tasks: HashMap<_, _> = tasks.into_iter().collect();
        let file = self.task_file.clone();
        let file = file.map(|file| TaskFile::open(file, tasks.clone()));
        let file = file.transpose()?;
        let api = |url: &String| {
            let url = parse_api(url).map_err(|wrong| Failure::usage(format!("--api: {wrong}")))?;
            check(&url)?;
            Ok(ClusterApi::new(url, dialer.clone()))
        };
        let api = self.api.as_ref().map(api).transpose()?;
        if tasks.is_empty() && file.is_none() && api.is_none() {
            return Err(Failure::usage(
                "no tasks are known: give --task 42=kohakuriver-vps-42@http://127.0.0.1:8001, \
                 --tasks FILE or --api URL",
            ));
        }
        let memory = self.memory.budget(&process.threads);
        Ok(Settings {
            tasks,
            file,
            api,
            token: self.front.token.token()?,
            front: self.front.settings()?,
            dialer,
            ceilings: HostCeilings::new(
                usable(process.threads.count()),
                self.front.max_sessions,
                process.threads.count(),
                memory.limit(),
            ),
            memory,
            threads: process.threads.clone(),
            log: process.log.clone(),
        })
    }
}

impl Basics for Args {
    fn log_format(&self) -> LogFormat {
        self.log.log_format
    }

    fn threads(&self) -> usize {
        self.threads.count()
    }
}

fn parse_api(text: &str) -> Result<Url, String> {
    let url = Url::parse_base(text)?;
    // Without a scheme, any word would be the name of a machine.
    let has_scheme = text.contains("://");
    has_scheme.then_some(url).ok_or_else(|| {
        format!("{text:?} is no URL: write http:// or https:// in front, as in http://cluster:8000")
    })
}

fn parse_task(text: &str) -> Result<(String, TaskPlace), String> {
    let form = "--task: write TASK=CONTAINER@RUNNER-URL, \
                for example 42=kohakuriver-vps-42@http://127.0.0.1:8001";
    let (task, place) = text.split_once('=').ok_or(form)?;
    check_name("task id", task)?;
    let place = TaskPlace::parse(place).map_err(|wrong| format!("--task {task}: {wrong}"))?;
    Ok((task.to_owned(), place))
}

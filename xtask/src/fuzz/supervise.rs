//! Parent of the workers: counts results and detects workers that hang or die.

use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::examine::draw;
use super::state::{Failure, Kind, Progress};
use super::worker::Message;
use super::{Args, tell};

/// Interval at which the state is written and the count shown.
const REPORT: Duration = Duration::from_secs(5);

/// Runs workers on a backend, one after the other, until the time, the count or the limit of failures is reached.
pub(super) fn run(
    args: &Args,
    backend: &str,
    time: Option<Duration>,
    progress: &mut Progress,
    mut save: impl FnMut(&Progress) -> Result<(), String>,
) -> Result<(), String> {
    let started = Instant::now();
    let end = args.count.map_or(u64::MAX, |count| progress.next.saturating_add(count));
    let most_failures = progress.failures.len() + args.failures;
    let seconds = progress.seconds;
    let is_over = |progress: &Progress| {
        let late = time.is_some_and(|time| started.elapsed() >= time);
        late || progress.next >= end || progress.failures.len() >= most_failures
    };
    let mut reported = Instant::now();
    while !is_over(progress) {
        let mut worker = Worker::start(args, backend, progress.next, end - progress.next)?;
        while !is_over(progress) {
            let is_there = match worker.listen(Duration::from_secs(args.hang))? {
                Heard::Nothing => true,
                Heard::Passed(cached) => {
                    progress.passed += 1;
                    progress.cached += u64::from(cached);
                    progress.next += 1;
                    true
                }
                Heard::Skipped(reason) => {
                    progress.skipped += 1;
                    progress.next += 1;
                    *progress.skips.entry(reason).or_default() += 1;
                    true
                }
                Heard::Failed(failure) => {
                    tell(args, backend, &failure)?;
                    progress.next = failure.seed + 1;
                    progress.failures.push(failure);
                    false
                }
                Heard::End => false,
            };
            progress.seconds = seconds + started.elapsed().as_secs_f64();
            if reported.elapsed() > REPORT {
                reported = Instant::now();
                save(progress)?;
                if std::io::stderr().is_terminal() {
                    eprintln!("{backend}: seed {}, {} failed", progress.next, progress.failures.len());
                }
            }
            if !is_there {
                break;
            }
        }
        worker.stop();
    }
    save(progress)
}

/// Worker process and its messages.
struct Worker {
    process: Child,
    messages: Receiver<Message>,
    backend: String,
    terms: bool,
    /// Seed that it works on, once it has begun.
    seed: Option<u64>,
    heard: Instant,
}

/// Result of listening to a worker.
enum Heard {
    Nothing,
    Passed(bool),
    Skipped(String),
    Failed(Failure),
    /// The worker ended successfully.
    End,
}

impl Worker {
    /// Starts a worker for `count` seeds from `first` on.
    fn start(args: &Args, backend: &str, first: u64, count: u64) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["fuzz", "--worker", "--backend", backend, "--seed", &first.to_string(), "--count", &count.to_string()]);
        if args.terms {
            command.arg("--terms");
        }
        if let Some(plant) = args.plant {
            command.args(["--plant", &format!("{plant:?}").to_lowercase()]);
        }
        let mut process = command.stdout(Stdio::piped()).spawn().map_err(|error| format!("a worker does not start: {error}"))?;
        let lines = BufReader::new(process.stdout.take().ok_or("a worker without standard output")?).lines();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            // Lines that are not messages come from a driver.
            let said = lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            said.into_iter().try_for_each(|message| sender.send(message))
        });
        Ok(Self { process, messages, backend: backend.to_string(), terms: args.terms, seed: None, heard: Instant::now() })
    }

    /// Waits a moment for the next message. A worker that sends none for `patience` hangs.
    fn listen(&mut self, patience: Duration) -> Result<Heard, String> {
        match self.messages.recv_timeout(Duration::from_millis(100)) {
            Ok(message) => {
                self.heard = Instant::now();
                Ok(match message {
                    Message::Seed(seed) => {
                        self.seed = Some(seed);
                        Heard::Nothing
                    }
                    Message::Passed(cached) => Heard::Passed(cached),
                    Message::Skipped(reason) => Heard::Skipped(reason),
                    Message::Failed(failure) => Heard::Failed(failure),
                })
            }
            Err(RecvTimeoutError::Timeout) if self.heard.elapsed() < patience => Ok(Heard::Nothing),
            Err(RecvTimeoutError::Timeout) => self.lost(Kind::Hang, format!("no answer in {} seconds", patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => match self.process.wait().map_err(|error| error.to_string())? {
                status if status.success() => Ok(Heard::End),
                status => self.lost(Kind::Crash, status.to_string()),
            },
        }
    }

    /// Describes the problem of a worker that can no longer report it.
    fn lost(&self, kind: Kind, what: String) -> Result<Heard, String> {
        let seed = self.seed.ok_or_else(|| format!("a worker did not even begin: {what}"))?;
        let problem = match draw(&self.backend, self.terms, seed) {
            Ok(Ok(case)) => format!("{:?} {:?}", case.problem, case.fill),
            Ok(Err(error)) | Err(error) => error.to_string(),
        };
        Ok(Heard::Failed(Failure::bare(seed, kind, format!("{what}: {problem}"))))
    }

    fn stop(mut self) {
        let _ = self.process.kill(); // it may have ended
        let _ = self.process.wait();
    }
}

//! Behaviour that a shell sees: help, exit codes, pipes, colours.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{attn, command, ran};

#[test]
fn help_teaches_by_examples() {
    for command in ["", "explain", "devices", "run", "verify", "bench"] {
        let arguments = [command, "--help"];
        let arguments = &arguments[usize::from(command.is_empty())..];
        let help = attn(arguments).ok().out;
        let example = if arguments.len() == 1 { "attn run".to_string() } else { format!("attn {} ", arguments[0]) };
        assert!(help.contains("Examples:") && help.contains(&example), "{arguments:?}: {help}");
    }
    assert!(attn(&["--version"]).ok().out.starts_with("attn "));
}

#[test]
fn unknown_arguments_are_bad_input() {
    for arguments in [&["fly"][..], &["explain", "--fast"], &["run"], &["bench", "--dtype", "f64"], &["explain", "a", "b"]] {
        attn(arguments).refused(&["error"]);
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    for arguments in [&["explain", "--backend", "cpu"][..], &["explain", "--json", "--backend", "cpu"], &["--help"]] {
        let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().expect("it is piped").read_to_string(&mut err).expect("UTF-8");
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{err}");
        assert_eq!(err, "");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let explain = ["explain", "--backend", "cpu"];
    let escape = '\x1b';
    let with = |set: &[(&str, &str)], more: &[&str]| {
        let mut command = command(&explain);
        command.args(more).envs(set.iter().copied());
        ran(command.output().expect("the program starts")).ok().out
    };
    assert!(!with(&[], &[]).contains(escape), "a pipe is no terminal");
    assert!(with(&[], &["--color", "always"]).contains("\x1b[48;5;"));
    assert!(with(&[("CLICOLOR_FORCE", "1"), ("TERM", "xterm-256color")], &[]).contains(escape));
    assert!(!with(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &["--color", "never"]).contains(escape));
    assert!(!with(&[("NO_COLOR", "1")], &[]).contains(escape));
    // Without colours there are shades, in ASCII unless the locale is UTF-8.
    assert!(with(&[], &[]).contains('▓'));
    let ascii = with(&[("LC_ALL", "C")], &[]);
    assert!(ascii.contains("0.3989**") && !ascii.contains('▓'), "{ascii}");
}

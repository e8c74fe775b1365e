//! Behaviour that a shell sees: help, exit codes, pipes, colours.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{attn, command, folder, npy_f32, npy_i64, ran};
use safetensors::tensor::{Dtype, TensorView};

const COMMANDS: [&str; 10] = ["", "explain", "devices", "run", "shader", "export", "verify", "bench", "tune", "report"];

fn help(command: &str) -> String {
    let arguments = [command, "--help"];
    attn(&arguments[usize::from(command.is_empty())..]).ok().out
}

#[test]
fn help_teaches_by_examples() {
    for command in COMMANDS {
        let help = help(command);
        let example = if command.is_empty() { "attn run".to_string() } else { format!("attn {command}") };
        assert!(help.contains("Examples:") && help.contains(&format!("\n  {example} ")), "{command}: {help}");
        assert!(help.lines().all(|line| line.chars().count() < 100), "{command}: {help}");
    }
    assert!(attn(&["--version"]).ok().out.starts_with("attn "));
}

/// Runs the examples that need neither a GPU nor minutes, on the CPU path, where their files are.
#[cfg(unix)]
#[test]
fn the_examples_of_the_help_run() {
    let folder = folder("examples");
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.join(name), bytes).expect("written");
    for name in ["q.npy", "k.npy", "v.npy", "do.npy"] {
        write(name, npy_f32(&[1, 2, 3, 4], &[0.5; 24]));
    }
    write("h.npy", npy_f32(&[3, 4], &[0.5; 12]));
    write("lengths.npy", npy_i64(&[1], &[2]));
    write("s.npy", npy_f32(&[2], &[0.5, 0.25]));
    write("alibi.wgsl", include_bytes!("../../examples/terms/alibi.wgsl").to_vec());
    write("labels.txt", b"one\ntwo\nthree\n".to_vec());
    let data = [0u8; 96];
    let view = |shape: &[usize]| TensorView::new(Dtype::F32, shape.to_vec(), &data[..4 * shape.iter().product::<usize>()]).expect("whole");
    let qkv = ["query", "key", "value"].map(|name| (name, view(&[1, 2, 3, 4])));
    write("qkv.safetensors", safetensors::serialize(qkv, None).expect("serialised"));
    let names = ["query", "key", "value"].map(|part| format!("encoder.layer.3.attention.self.{part}"));
    let names = names.into_iter().chain(["encoder.layer.3.attention.output.dense".into()]);
    let bert = names.flat_map(|name| [(format!("{name}.weight"), view(&[4, 4])), (format!("{name}.bias"), view(&[4]))]);
    write("bert.safetensors", safetensors::serialize(bert, None).expect("serialised"));
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests"), folder.join("tests")).expect("linked");
    let record = attn(&["bench", "--backend", "cpu", "--shape", "1,1,1,2,2,4", "--seconds", "0", "--json"]).ok().out;
    write("record.jsonl", record.into_bytes());

    let mut count = 0;
    for command in ["explain", "devices", "run", "shader", "export", "report"] {
        let help = help(command);
        for line in help.lines().filter(|line| line.starts_with(&format!("  attn {command} ")) && !line.contains('|')) {
            // An explanation may follow after several spaces.
            let line = line.trim().split("   ").next().unwrap_or_default().replace("--num-heads 12", "--num-heads 2");
            let line = line.replace("--backend vulkan", "--backend cpu");
            let mut shell = std::process::Command::new("sh");
            let script = line.replacen("attn", "\"$ATTN\"", 1);
            let shell = shell.arg("-c").arg(&script).env("ATTN", env!("CARGO_BIN_EXE_attn")).env("WGPU_ADAPTER_NAME", "");
            let told = ran(shell.current_dir(&folder).output().expect("a shell"));
            assert_eq!(told.code, Some(0), "{script}: {}", told.err);
            count += 1;
        }
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn mesa_is_quiet_about_wayland() {
    for folder in ["", "relative", "/nowhere"] {
        let told = ran(command(&["devices"]).env("XDG_RUNTIME_DIR", folder).output().expect("the program starts")).ok();
        assert!(!told.err.contains("XDG_RUNTIME_DIR"), "{}", told.err);
    }
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

//! `cargo xtask hlsl`: gives the generic kernels to vkd3d's HLSL compiler, which stands in for DX12's FXC.
//!
//! The text is naga's, as wgpu passes it to FXC, except for what [`for_vkd3d`] rewrites.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use naga::back::hlsl;
use rayon::prelude::*;

use crate::{kernels, spirv};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Shaders to compile instead of the generic kernels
    files: Vec<PathBuf>,
    /// Compile only kernels with TEXT in their case
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Folder for the HLSL; created if there is none
    #[arg(long, value_name = "FOLDER", default_value = "target/hlsl")]
    out: PathBuf,
    /// Processor time that a kernel may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    limit: f64,
}

/// Compiles the kernels and prints a table. Returns true if each was taken within the limit.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    let mut kernels = if args.files.is_empty() { kernels::generic()? } else { read(&args.files)? };
    kernels.retain(|(case, _)| case.contains(&args.only));
    fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    eprintln!("{:>7}  {:40}  verdict", "seconds", "kernel");
    let compile = |(number, (case, text)): (usize, &(String, String))| {
        let path = args.out.join(format!("{number:03}.hlsl"));
        let (seconds, refused) = judge(&path, text, args.limit)?;
        eprintln!("{seconds:7.2}  {case:40}  {}", refused.as_ref().map_or("ok".into(), |why| format!("{why} ({})", path.display())));
        Ok((seconds, refused.is_some()))
    };
    let judged: Vec<(f64, bool)> = kernels.par_iter().enumerate().map(compile).collect::<Result<_, String>>()?;
    let bad = judged.iter().filter(|(_, refused)| *refused).count();
    let longest = judged.iter().map(|(seconds, _)| *seconds).fold(0.0, f64::max);
    eprintln!("{} kernels, {bad} refused or over {} seconds, the longest {longest:.1} seconds", judged.len(), args.limit);
    Ok(bad == 0)
}

/// Compiles a kernel. Returns the seconds of processor time and, if it was not taken, why.
fn judge(path: &Path, wgsl: &str, limit: f64) -> Result<(f64, Option<String>), String> {
    fs::write(path, for_vkd3d(&translate(wgsl)?)).map_err(|error| format!("{}: {error}", path.display()))?;
    let said = path.with_extension("txt");
    let to = fs::File::create(&said).map_err(|error| format!("{}: {error}", said.display()))?;
    let mut compiler = Command::new("vkd3d-compiler")
        .args(["-x", "hlsl", "-b", "dxbc-tpf", "-p", "cs_5_1", "-e", "main", "-o", "/dev/null"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(to)
        .spawn()
        .map_err(|error| format!("vkd3d-compiler: {error}"))?;
    let mut seconds = 0.0;
    let status = loop {
        seconds = processor_time(compiler.id()).unwrap_or(seconds);
        if let Some(status) = compiler.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if seconds > limit {
            compiler.kill().and_then(|()| compiler.wait()).map_err(|error| error.to_string())?;
            return Ok((seconds, Some("too slow".into())));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if status.success() {
        return Ok((seconds, None));
    }
    let said = fs::read_to_string(&said).map_err(|error| format!("{}: {error}", said.display()))?;
    let error = said.lines().find(|line| line.contains(": E")).unwrap_or("without a reason");
    Ok((seconds, Some(format!("refused: {error}"))))
}

/// Seconds that a process has computed; `None` once it has ended.
fn processor_time(process: u32) -> Option<f64> {
    const TICKS: f64 = 100.0; // a second: USER_HZ of Linux
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    (ticks > 0.0).then_some(ticks / TICKS)
}

/// Translates a kernel as wgpu does it for FXC and a trusted shader.
fn translate(wgsl: &str) -> Result<String, String> {
    let (module, info) = spirv::parse(wgsl)?;
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V5_1,
        fake_missing_bindings: true,
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &Default::default()).write(&module, &info, None).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Rewrites what vkd3d 2.1 cannot take or does worse than FXC:
/// - a buffer that is written too has no loads and no atomics: loads are from a twin that is only read, atomics on one of u32s;
/// - it knows no loop's number of turns and copies the body of each 254 times before it gives up: loops that do not run
///   from a constant to a constant are marked `[loop]`. The others it unrolls, as FXC may.
fn for_vkd3d(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut written: Vec<&str> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.trim() == "while(true) {" && !counts(&lines, at) {
            out += "[loop] ";
        }
        out += &with_twins(line, &written);
        out.push('\n');
        if let Some((name, _)) = line.strip_prefix("RWByteAddressBuffer ").and_then(|declared| declared.split_once(' ')) {
            written.push(name);
            let _ = writeln!(out, "ByteAddressBuffer {name}_read;\nRWBuffer<uint> {name}_atomic;");
        }
    }
    out
}

/// Moves the loads and the atomic of a line to the twins of the buffers that are written.
fn with_twins(line: &str, written: &[&str]) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = line;
    while let Some(dot) = rest.find('.') {
        let (before, method) = (&rest[..dot], &rest[dot + 1..]);
        let name = before.rsplit(|c| !is_word(c)).next().unwrap_or_default();
        if written.contains(&name) && method.starts_with("Interlocked") {
            // NAME.FUNCTION(address, ..) is FUNCTION(NAME_atomic[address / 4], ..); there is one in a line.
            let (function, arguments) = method.split_once('(').unwrap_or_default();
            let (address, others) = first_argument(arguments);
            return format!("{out}{}{function}({name}_atomic[({address}) / 4]{others}", before.trim_end_matches(name));
        }
        let twin = if written.contains(&name) && method.starts_with("Load") { "_read" } else { "" };
        let _ = write!(out, "{before}{twin}.");
        rest = method;
    }
    out + rest
}

/// Splits arguments after the first, before its comma.
fn first_argument(arguments: &str) -> (&str, &str) {
    let mut depth = 0;
    let end = arguments.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    arguments.split_at(end.unwrap_or(arguments.len()))
}

/// True if the loop at a line runs from a constant to a constant. naga writes the first value two lines above, or in the
/// declaration, and the test as the first `if` on a comparison.
fn counts(lines: &[&str], at: usize) -> bool {
    let is_constant = |value: &str| {
        let mut words = value.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        words.all(|word| {
            word.trim_end_matches('u').parse::<u32>().is_ok() || word.chars().all(|c| c.is_uppercase() || c.is_numeric() || c == '_')
        })
    };
    let first = lines[at.saturating_sub(2)].trim().trim_end_matches(';').split_once(" = ");
    let starts = first.is_none_or(|(to, value)| to.contains(' ') || is_constant(value));
    let test = lines[at..].iter().take(14).map(|line| line.trim()).take_while(|line| *line != "break;").find_map(|line| {
        let comparison = line.strip_prefix("if ((")?.strip_suffix(")) {")?;
        [" < ", " <= ", " > ", " >= "].iter().find_map(|sign| comparison.split_once(sign))
    });
    starts && test.is_some_and(|(_, bound)| is_constant(bound))
}

fn read(files: &[PathBuf]) -> Result<Vec<(String, String)>, String> {
    let text = |path: &PathBuf| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    files.iter().map(|path| Ok((path.display().to_string(), text(path)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
RWByteAddressBuffer sums : register(u1);
ByteAddressBuffer other_sums : register(t2);
    n = 0u;
    bool loop_init = true;
    while(true) {
        if ((_e1 < TILE)) {
        } else {
            break;
    n = thread;
    bool loop_init_1 = true;
    while(true) {
        if ((_e2 < TILE)) {
        } else {
            break;
    uint a = asuint(sums.Load(4)) + asuint(other_sums.Load(i*4)) + asuint(sums.Load(8));
    uint b; sums.InterlockedOr(f(i, 2u)*4, (v & 3u), b);
";

    #[test]
    fn what_vkd3d_lacks_is_rewritten_and_no_more() {
        let text = for_vkd3d(TEXT);
        let line = |start: &str| text.lines().filter(|line| line.trim_start().starts_with(start)).collect::<Vec<_>>();
        assert_eq!(line("uint a"), ["    uint a = asuint(sums_read.Load(4)) + asuint(other_sums.Load(i*4)) + asuint(sums_read.Load(8));"]);
        assert_eq!(line("uint b"), ["    uint b; InterlockedOr(sums_atomic[(f(i, 2u)*4) / 4], (v & 3u), b);"]);
        assert_eq!(line("while").len(), 1, "a loop that counts is left to the compiler");
        assert_eq!(line("[loop]").len(), 1, "one that starts at an unknown number is not");
        assert_eq!(line("ByteAddressBuffer").len(), 2);
    }
}

//! Autotuning: it tries every kernel and takes the fastest correct one, and its results can be saved.

use std::ops::ControlFlow;
use std::time::Duration;

use wgpu_attention::gpu::{Gpu, ShaderOptions};
use wgpu_attention::{Backend, Dims, Engine, Error, Inputs, Problem, Progress};

use crate::common::buffers::draw;
use crate::common::{adapters, open};

#[test]
fn winners_are_found_saved_and_used() {
    let problem = Problem::new(Dims { num_kv_heads: 1, seq_len_q: 1, ..Dims::self_attention(1, 4, 700, 32) });
    let (query, key, value) = (draw(1, problem.query_len()), draw(2, problem.key_len()), draw(3, problem.value_len()));
    let inputs = Inputs::new(&query, &key, &value);
    for engine in adapters(ShaderOptions::default()) {
        let before = engine.attention(&problem, &inputs).expect("valid").output.to_f32();
        let tuned = engine.tune(&problem, &inputs, Duration::from_millis(300)).expect("valid");
        assert_eq!(tuned.trials[0].kernel, tuned.planned);
        assert!(tuned.trials.iter().all(|trial| trial.milliseconds.is_some_and(|ms| ms > 0.0)), "{tuned:?}");
        assert!(tuned.trials.iter().any(|trial| trial.kernel == tuned.winner));

        let mut stop = |_: f64| ControlFlow::Break(());
        let gpu = engine.gpu().expect("a GPU");
        let untuned = Engine::on_gpu(Gpu::from_device(gpu.device().clone(), gpu.queue().clone()));
        let stopped = pollster::block_on(untuned.tune_async(&problem, &inputs, Duration::MAX, &mut Progress::new(&mut stop)));
        assert_eq!((stopped, untuned.tuned()), (Err(Error::Cancelled), Ok(String::new())));

        // Results survive as text, are valid for this adapter alone, and change no answer.
        let text = engine.tuned().expect("a GPU");
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains(&tuned.class) && text.contains(&tuned.winner));
        let other = Engine::on_gpu(engine.gpu().expect("a GPU").clone());
        assert_eq!(other.load_tuned(&text), Ok(1));
        assert_eq!(other.load_tuned(&text.replace(engine.chosen(), "another")), Ok(0));
        let forced: String = text.lines().map(|line| line.replace(&tuned.winner, "tiles 32 1 8 1 0") + "\n").collect();
        assert_eq!(other.load_tuned(&forced), Ok(1));
        let after = other.attention(&problem, &inputs).expect("valid").output.to_f32();
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5));
        // Nonsense is not loaded; a kernel that does not work here is not used.
        assert_eq!(other.load_tuned(&text.replace(&tuned.winner, "magic 1 2")), Ok(0));
        assert_eq!(other.load_tuned(&text.replace(&tuned.winner, "tiles 0 0 0 0 0")), Ok(1));
        assert_eq!(other.attention(&problem, &inputs).expect("valid").output.to_f32(), before);
    }
}

#[test]
fn the_cpu_has_nothing_to_tune() {
    let engine = open(Backend::Cpu);
    let problem = Problem::new(Dims::self_attention(1, 1, 4, 4));
    let data = draw(1, 16);
    let refused = engine.tune(&problem, &Inputs::new(&data, &data, &data), Duration::ZERO);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

//! One visibility as a dense mask, as a block list and as a user's table: skipped tiles change no number.

use crate::common::cpu_and_adapters;
use wgpu_attention::{
    BackwardInputs, BlockList, BroadcastShape, Dims, Gradients, Inputs, Outputs, Problem, Table, TableData, Term, TileLists, WantGradients,
};

const DIMS: Dims = Dims { batch: 1, num_heads: 4, num_kv_heads: 2, seq_len_q: 150, seq_len_kv: 230, head_dim: 16, head_dim_v: 8 };
/// Rows and keys of a tile, and how many tiles there are.
const TILE: [usize; 2] = [32, 64];
const TILES: [usize; 2] = [5, 4];

/// True if a tile is visible; the second row of tiles sees nothing.
fn shows(row: usize, key: usize) -> bool {
    row != 1 && (row * 7 + key * 5).is_multiple_of(3)
}

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect()
}

fn all(gradients: &Gradients) -> [Vec<f32>; 3] {
    [&gradients.query, &gradients.key, &gradients.value].map(|gradient| gradient.as_ref().expect("wanted").to_f32())
}

#[test]
fn three_forms_have_the_same_answer() {
    let problem = Problem::new(DIMS).with_stats();
    let rows_and_keys = || (0..DIMS.seq_len_q).flat_map(|row| (0..DIMS.seq_len_kv).map(move |key| (row, key)));
    let mask: Vec<bool> = rows_and_keys().map(|(row, key)| shows(row / TILE[0], key / TILE[1])).collect();
    let tiles: Vec<bool> = (0..TILES[0] * TILES[1]).map(|at| shows(at / TILES[1], at % TILES[1])).collect();
    let words: Vec<u32> = tiles.iter().map(|&shown| shown.into()).collect();

    let dense = problem.clone().mask(BroadcastShape([1, 1, DIMS.seq_len_q, DIMS.seq_len_kv]));
    let listed = problem.clone().block_list(BlockList::new(TILE[0] as u32, TILE[1] as u32));
    let list = listed.block_list_words(TileLists::Dense(&tiles)).expect("valid");
    let text = "fn visible(at: Pair) -> bool { return words[at.row / 32 * 4 + at.key / 64] != 0u; }";
    let told = problem.with_term(Term::with_tables(text, &[Table::u32("words", words.len())]).expect("valid"));
    let tables = told.term_tables(&[("words", TableData::U32(&words))]).expect("valid");

    let [query, key, value] = [DIMS.num_heads * DIMS.seq_len_q * 16, 2 * 230 * 16, 2 * 230 * 8].map(|len| numbers(len, len));
    let d_output = numbers(DIMS.num_heads * DIMS.seq_len_q * 8, 3);
    let inputs = Inputs::new(&query, &key, &value);
    let forms = [
        (&dense, Inputs { mask: &mask, ..inputs }),
        (&listed, Inputs { block_list: &list, ..inputs }),
        (&told, Inputs { term_tables: &tables, ..inputs }),
    ];
    for engine in cpu_and_adapters() {
        let compute = |(problem, inputs): &(&Problem, Inputs<'_>)| -> (Outputs, Gradients) {
            let outputs = engine.attention(problem, inputs).expect("it computes");
            let backward = BackwardInputs { stats: outputs.stats.as_deref(), ..BackwardInputs::new(&outputs.output, &d_output) };
            let gradients = engine.backward(problem, inputs, &backward, &WantGradients::default()).expect("it derives");
            (outputs, gradients)
        };
        let [(dense, d_dense), rest @ ..] = &forms.iter().map(compute).collect::<Vec<_>>()[..] else { unreachable!("three forms") };
        assert!(dense.output.to_f32()[32 * 8..64 * 8].iter().all(|&x| x == 0.0), "rows that see nothing");
        for (form, (outputs, gradients)) in ["block list", "user's table"].into_iter().zip(rest) {
            let name = format!("{form} on {}", engine.chosen());
            assert_eq!(outputs.output.to_f32(), dense.output.to_f32(), "{name}");
            assert_eq!(outputs.stats, dense.stats, "{name}");
            assert_eq!(all(gradients), all(d_dense), "{name}");
        }
    }
}

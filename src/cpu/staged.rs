//! Second pass over the keys, which writes scores and weights once the rows' max and sum are known.

use super::job::{Job, KEY_BLOCK, Unit};
use super::pack::Transpose;
use super::panel::Panel;
use super::shared::{Buffer, Shared};
use super::softmax::Weights;
use super::tile::{Masking, Tile, softcap_before_biases};
use crate::ScoreStage;
use crate::problem::Operand;

/// Writes the scores and weights that are asked for, of all keys, masked ones included. `panel` must be finished.
pub(super) fn write(job: &Job<'_>, unit: &Unit, panel: &mut Panel, tile: &mut Tile, key_buffer: &mut Buffer) {
    let width = panel.width;
    for start in (0..job.items[unit.item].keys).step_by(KEY_BLOCK) {
        let keys = start..job.items[unit.item].keys.min(start + KEY_BLOCK);
        let key = job.key_rows(unit, Operand::Key, &keys, true, key_buffer);
        if let Some((stage @ (ScoreStage::Raw | ScoreStage::Capped), scores)) = &job.scores {
            tile.score(job, panel, key);
            if *stage == ScoreStage::Capped {
                tile.modify(job, width, keys.len(), Masking::Nothing, softcap_before_biases(job.problem));
            }
            write_rows(job, unit, panel, tile, start, keys.len(), scores);
            if job.weights.is_none() {
                continue;
            }
        }
        tile.score(job, panel, key);
        let masking = tile.masking(job, unit, panel, &keys);
        tile.modify(job, width, keys.len(), masking, job.problem.softcap);
        if let Some((ScoreStage::Masked, scores)) = &job.scores {
            write_rows(job, unit, panel, tile, start, keys.len(), scores);
        }
        if let Some(weights) = &job.weights {
            let (max, factor) = (panel.max.take(width), panel.sum.take(width));
            job.isa.run(Weights { panel: width, scores: tile.scores.take(width * keys.len()), max, factor });
            write_rows(job, unit, panel, tile, start, keys.len(), weights);
        }
    }
}

/// Writes the tile's elements to rows of [batch, num_heads, seq_len_q, seq_len_kv], from key `start` on.
fn write_rows(job: &Job<'_>, unit: &Unit, panel: &Panel, tile: &mut Tile, start: usize, keys: usize, to: &Shared<'_, f32>) {
    let d = &job.problem.dims;
    let (from, rows) = (tile.scores.take(panel.width * keys), tile.rows.take(panel.width * keys));
    job.isa.run(Transpose { rows: keys, columns: panel.width, from, from_step: panel.width, to: rows });
    for (r, row) in rows.chunks_exact(keys).take(panel.rows).enumerate() {
        let (head, i) = unit.row(job.problem, panel.first + r);
        let at = ((job.items[unit.item].batch * d.num_heads + head) * d.seq_len_q + i) * d.seq_len_kv + start;
        // SAFETY: each row belongs to one unit.
        unsafe { to.slice(at..at + keys) }.copy_from_slice(row);
    }
}

//! Bookkeeping of a cache on a device as plain data: the words of the state say what the ledger says.

use fastrand::Rng;
use wgpu_attention::cache::{CachePlan, CacheShape, CacheSize, Growth, KeptRows, LayerShape, Ledger, StateWrite};
use wgpu_attention::plan::DeviceCaps;

/// Applies the ledger's words to a state of its own, with `advance` in Rust: lengths and pages are the ledger's.
#[test]
fn words_of_the_state_follow_the_ledger() {
    let size = CacheSize { slots: 4, pages_per_slot: 5 };
    let shape = CacheShape::uniform(1, LayerShape::new(1, 4)).page_size(3).pages(12);
    let plan = CachePlan::new(shape, size, &DeviceCaps::webgpu_defaults()).expect("a cache");
    let mut ledger = plan.ledger().expect("room");
    let mut state = vec![0u32; plan.state_bytes() as usize / 4];
    let mut rng = Rng::with_seed(3);
    let (mut copied, mut moved, mut refused) = (0, 0, 0);
    for _ in 0..10_000 {
        let (slot, amount) = (rng.usize(0..4), rng.usize(0..9));
        let done = match rng.u32(0..9) {
            0 => ledger.start().map(|_| ()),
            1 => ledger.fork(slot, amount).map(|_| ()),
            2 => ledger.free(slot).map(|_| ()),
            3 => ledger.truncate(slot, amount).map(|_| ()),
            4 => {
                let rows: Vec<usize> = (0..amount).filter(|_| rng.bool()).collect();
                let twice = [KeptRows { slot, last: amount, rows: &rows }, KeptRows { slot: (slot + 1) % 4, last: 1, rows: &[] }];
                ledger.keep(&twice[..rng.usize(1..=2)]).map(|moves| moved += moves.len())
            }
            _ => {
                let tokens: Vec<usize> = (0..4).map(|slot| if ledger.length(slot).is_ok() { rng.usize(0..3) } else { 0 }).collect();
                let steps = rng.usize(0..3);
                let extended = ledger.extend(Growth { tokens: &tokens, steps });
                let steps = if extended.is_ok() { steps } else { 0 };
                apply(&mut ledger, &mut state);
                for _ in 0..steps {
                    for slot in 0..4 {
                        state[slot] += state[4 + slot];
                        assert!(state[slot] <= state[8 + slot], "no room for a step that was promised");
                    }
                }
                extended.map(|copies| {
                    let written: Vec<u32> = copies.iter().map(|copy| copy[1]).collect();
                    assert!(copies.iter().all(|[from, _]| !written.contains(from)));
                    copied += copies.len();
                })
            }
        };
        refused += usize::from(done.is_err());
        apply(&mut ledger, &mut state);
        for slot in 0..4 {
            let length = ledger.length(slot).unwrap_or(0);
            assert_eq!(state[slot] as usize, length);
            let pages = ledger.pages(slot).unwrap_or(&[]);
            assert_eq!(state[8 + slot] as usize, 3 * pages.len());
            assert_eq!(state[16 + 5 * slot..][..pages.len()], *pages);
        }
    }
    assert!(copied > 50 && moved > 50 && refused > 50, "{copied} pages and {moved} tokens were copied, {refused} calls refused");
}

fn apply(ledger: &mut Ledger, state: &mut [u32]) {
    for StateWrite { offset, words } in ledger.take_writes() {
        state[offset..offset + words.len()].copy_from_slice(&words);
    }
}

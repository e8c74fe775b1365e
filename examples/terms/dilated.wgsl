// Dilated: every STEP-th key back from the row's position. Sparse Transformers (strided), LongNet, Longformer.
// Tables: none.

const STEP: i32 = 4;

fn visible(at: Pair) -> bool {
    let distance = at.position - at.key;
    return distance >= 0 && distance % STEP == 0;
}

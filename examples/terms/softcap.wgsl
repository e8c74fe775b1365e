// Softcap: scores bounded smoothly by CAP. Gemma 2, Grok-1; the same as Problem::softcap.
// Tables: none.

const CAP: f32 = 30.0;

fn score(x: f32, at: Pair) -> f32 {
    return CAP * tanh(x / CAP);
}

//! Dropout by a counter-based generator: both passes, every backend and every tiling drop the same weights.
//!
//! Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011) turns a counter and a key into
//! four random words without any state. Key j of a query row has word j % 4 of the counter (j / 4, row, item x
//! num_heads + head, offset); the Philox key is the seed.

/// Seed and offset that select which weights drop; [`crate::Problem::dropout`] is the probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dropout {
    /// Seed, one for a whole training run.
    pub seed: u64,
    /// Offset, a new one for every layer of every step.
    pub offset: u32,
}

/// Rule of dropout: a weight whose word is below `threshold` drops, the others are multiplied by `factor`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DropoutRule {
    pub(crate) threshold: u32,
    /// 1 / (1 - probability)
    pub(crate) factor: f32,
}

impl DropoutRule {
    /// Rule under which nothing drops.
    pub(crate) const NOTHING: Self = Self { threshold: 0, factor: 1.0 };

    /// Factor on a weight with this word.
    #[inline(always)]
    pub(crate) const fn scale(self, word: u32) -> f32 {
        if word < self.threshold { 0.0 } else { self.factor }
    }

    /// Rule for a probability of at least 0 and below 1.
    pub(crate) fn new(probability: f32) -> Self {
        Self { threshold: (f64::from(probability) * 4_294_967_296.0) as u32, factor: (1.0 / (1.0 - f64::from(probability))) as f32 }
    }
}

impl Dropout {
    /// Factor of dropout on the weight of a pair: 0, or 1 / (1 - probability). `probability` is [`crate::Problem::dropout`],
    /// `num_heads` counts query heads.
    ///
    /// ```
    /// use wgpu_attention::Dropout;
    ///
    /// let dropout = Dropout { seed: 1, offset: 0 };
    /// let kept = (0..1000).filter(|&key| dropout.scale(0.25, 8, [0, 3, 17, key]) != 0.0).count();
    /// assert!((700..800).contains(&kept));
    /// ```
    pub fn scale(self, probability: f32, num_heads: usize, [item, head, row, key]: [usize; 4]) -> f32 {
        let rule = DropoutRule::new(probability);
        rule.scale(self.words(item * num_heads + head, row, key / 4)[key % 4])
    }

    /// Words of the four keys `4 * quad ..` in one row of the score matrix; `pair` is item x num_heads + head.
    pub(crate) fn words(self, pair: usize, row: usize, quad: usize) -> [u32; 4] {
        self.words_of([pair as u32], [row as u32], quad).map(|[word]| word)
    }

    /// [`Self::words`] for several rows at once.
    #[inline(always)]
    pub(crate) fn words_of<const N: usize>(self, pairs: [u32; N], rows: [u32; N], quad: usize) -> [[u32; N]; 4] {
        philox([[quad as u32; N], rows, pairs, [self.offset; N]], [self.seed as u32, (self.seed >> 32) as u32])
    }
}

/// Philox4x32-10 of N counters.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the same lane of four words")]
fn philox<const N: usize>(counters: [[u32; N]; 4], key: [u32; 2]) -> [[u32; N]; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let (mut c, mut k) = (counters, key);
    for _ in 0..10 {
        for n in 0..N {
            let [first, second] = [u64::from(MULTIPLIERS[0]) * u64::from(c[0][n]), u64::from(MULTIPLIERS[1]) * u64::from(c[2][n])];
            (c[0][n], c[2][n]) = ((second >> 32) as u32 ^ c[1][n] ^ k[0], (first >> 32) as u32 ^ c[3][n] ^ k[1]);
            (c[1][n], c[3][n]) = (second as u32, first as u32);
        }
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 library (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, words) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(counter.map(|word: u32| [word; 3]), key), words.map(|word: u32| [word; 3]));
        }
    }

    #[test]
    fn the_share_that_drops_is_the_probability() {
        for probability in [0.0, 0.1, 0.5, 0.9] {
            let drop = DropoutRule::new(probability);
            let words = (0..25_000).flat_map(|quad| Dropout { seed: 7, offset: 3 }.words(1, quad % 50, quad / 50));
            let share = words.filter(|&word| word < drop.threshold).count() as f32 / 100_000.0;
            // Five standard deviations.
            assert!(
                (share - probability).abs() <= 5.0 * (probability * (1.0 - probability) / 100_000.0).sqrt(),
                "{share} of {probability}"
            );
        }
    }
}

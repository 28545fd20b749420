//! From rounds to figures.

/// One measurement of a way of tracing, and of nothing right before it.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Packets in a second.
    pub packets_per_second: f64,
    /// The same without tracing.
    pub without_per_second: f64,
    /// From sending a packet to having received it, for each of some packets, in nanoseconds.
    pub latencies_ns: Vec<u64>,
    /// Processor time of whoever reads, for each packet, in nanoseconds; `None` where nobody reads or nobody tells.
    pub reader_ns: Option<f64>,
    /// Events that found no room.
    pub lost: u64,
}

/// The medians of the rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Packets in a second.
    pub packets_per_second: f64,
    /// In parts of what is possible without tracing, each round compared with what was measured right before it.
    pub ratio: f64,
    /// The middle half of the ratios lies within so much, in parts of their median.
    pub spread: f64,
    /// Half of the packets arrive in this time, in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 packets do.
    pub p99_ns: u64,
    /// Processor time of the reader for each packet, in nanoseconds.
    pub reader_ns: Option<f64>,
    /// Events that found no room, in all rounds.
    pub lost: u64,
    /// How many rounds there were.
    pub rounds: usize,
}

impl Figures {
    /// `None` without rounds.
    pub fn of(rounds: &[Round]) -> Option<Self> {
        let values = |value: fn(&Round) -> f64| sorted(rounds.iter().map(value).collect());
        let ratios = values(|round| round.packets_per_second / round.without_per_second);
        let ratio = quantile(&ratios, 0.5)?;
        let mut latencies: Vec<u64> = rounds.iter().flat_map(|round| round.latencies_ns.clone()).collect();
        latencies.sort_unstable();
        Some(Self {
            packets_per_second: quantile(&values(|round| round.packets_per_second), 0.5)?,
            ratio,
            spread: (quantile(&ratios, 0.75)? - quantile(&ratios, 0.25)?) / ratio,
            p50_ns: rank(&latencies, 50)?,
            p99_ns: rank(&latencies, 99)?,
            reader_ns: quantile(&sorted(rounds.iter().filter_map(|round| round.reader_ns).collect()), 0.5),
            lost: rounds.iter().map(|round| round.lost).sum(),
            rounds: rounds.len(),
        })
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values, between the two nearest ones.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(low + (high - low) * place.fract())
}

/// The smallest of sorted values that so many of a hundred do not exceed.
fn rank(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get((sorted.len() * percent).div_ceil(100).checked_sub(1)?).copied()
}

/// What a quarter of some times does not exceed: on a busy host, something else ran during many of the others.
pub fn lower_quartile(values: Vec<f64>) -> Option<f64> {
    quantile(&sorted(values), 0.25)
}

//! What is said of the time that packets take.

use super::*;

#[test]
fn spans_have_their_units() {
    for (ns, text) in [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.0 µs"),
        (12_345, "12.3 µs"),
        (1_500_000, "1.5 ms"),
        (61_000_000_000, "61.0 s"),
    ] {
        assert_eq!(Span(ns).to_string(), text);
    }
}

#[test]
fn a_histogram_has_powers_of_two() {
    let mut histogram = Histogram::default();
    assert_eq!((histogram.count(), histogram.mean_ns(), histogram.filled().count()), (0, 0, 0));
    for ns in [600, 700, 1023, 1024, 5000] {
        histogram.add(ns);
    }
    assert_eq!(histogram.filled().collect::<Vec<_>>(), [(512, 3), (1024, 1), (2048, 0), (4096, 1)]);
    assert_eq!((histogram.count(), histogram.mean_ns(), histogram.longest_ns()), (5, 1669, 5000));
    histogram.add(0);
    histogram.add(u64::MAX);
    assert_eq!(histogram.filled().next(), Some((0, 1)));
    assert_eq!(histogram.filled().last(), Some((1 << 63, 1)));
}

#[test]
fn the_hottest_rules_come_first() {
    let mut summary = Summary::default();
    for name in ["a", "b", "b", "c", "c", "d"] {
        summary.met(TableFamily::Ip, name, None);
    }
    let names: Vec<&str> = summary.hottest(3).into_iter().map(|hot| hot.name.as_str()).collect();
    assert_eq!(names, ["ip b", "ip c", "ip a"]);
}

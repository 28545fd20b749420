//! Figures of made-up rounds, and how they are shown.

use super::*;
use expect_test::expect;

fn round(packets_per_second: f64, without_per_second: f64) -> Round {
    let latencies_ns = (1..=100).map(|number| number * 50).collect();
    Round { packets_per_second, without_per_second, latencies_ns, reader_ns: None, lost: 0 }
}

fn report() -> Report {
    let figures = |rounds: &[Round]| Figures::of(rounds).expect("there are rounds");
    let nothing: Vec<Round> = [500e3, 510e3, 490e3].map(|rate| round(rate, rate)).to_vec();
    let half: Vec<Round> = [(240e3, 500e3), (260e3, 510e3), (245e3, 490e3)]
        .map(|(rate, without)| Round { reader_ns: Some(1500.0), lost: 7, ..round(rate, without) })
        .to_vec();
    let row = |name, title, engine, result| Row { name, title, engine, result };
    Report {
        kernel: "6.1.0".to_owned(),
        arch: "x86_64",
        cpus: Some(2),
        payload_bytes: 64,
        took: Duration::from_millis(39_600),
        interrupted: false,
        rows: vec![
            row("nothing", "nothing", Engine::Legacy, Ok(figures(&nothing))),
            row("netlink", "nftracer, netlink", Engine::Legacy, Ok(figures(&half))),
            row(
                "nft-monitor",
                "nft monitor trace",
                Engine::Nft,
                Err(Obstacle {
                    reason: "nft is not\ninstalled".to_owned(),
                    remedy: Some("install nftables".to_owned()),
                }),
            ),
        ],
    }
}

#[test]
fn the_text_has_a_table_bars_and_what_is_not_measured() {
    expect![[r#"
        Linux 6.1.0, x86_64, 2 CPUs: UDP datagrams of 64 bytes between two namespaces, sent and received by one thread
        medians of 3 rounds in 40 s

        legacy tables      packets/s  of nothing  spread     p50     p99  reader  lost
        nothing              500 000     100.0 %   0.0 %  2.5 µs  5.0 µs       -     0
        nftracer, netlink    245 000      50.0 %   3.0 %  2.5 µs  5.0 µs  1.5 µs    21

        legacy tables, packets/s
        nothing            ████████████████████████████████████████ 100.0 %
        nftracer, netlink  ████████████████████ 50.0 %

        not measured: nft monitor trace with nftables
          nft is not\ninstalled
          remedy: install nftables
    "#]].assert_eq(&report().to_text());
}

#[test]
fn the_json_has_all_of_it() {
    expect![[r#"
        {"type":"bench","version":"0.1.0","kernel":"6.1.0","arch":"x86_64","cpus":2,"payload_bytes":64,"took_ns":39600000000,"interrupted":false,"rows":[{"name":"nothing","title":"nothing","engine":"legacy","packets_per_second":500000.0,"ratio":1.0,"spread":0.0,"latency_p50_ns":2500,"latency_p99_ns":4950,"reader_ns_per_packet":null,"lost":0,"rounds":3},{"name":"netlink","title":"nftracer, netlink","engine":"legacy","packets_per_second":245000.0,"ratio":0.5,"spread":0.029803921568627434,"latency_p50_ns":2500,"latency_p99_ns":4950,"reader_ns_per_packet":1500.0,"lost":21,"rounds":3}],"not_measured":[{"name":"nft-monitor","title":"nft monitor trace","engine":"nft","reason":"nft is not\ninstalled","remedy":"install nftables"}]}
    "#]].assert_eq(&report().to_json());
}

#[test]
fn medians_withstand_a_disturbed_round() {
    let rounds = [round(100.0, 200.0), round(102.0, 200.0), round(3.0, 200.0), round(101.0, 2000.0)];
    let figures = Figures::of(&rounds).unwrap();
    assert!((figures.packets_per_second - 100.5).abs() < 1e-9);
    assert!((figures.ratio - (0.0505 + 0.5) / 2.0).abs() < 1e-9);
    assert_eq!((figures.p50_ns, figures.p99_ns, figures.rounds), (2500, 4950, 4));
    assert_eq!(Figures::of(&[]), None);
}

#[test]
fn bars_are_of_eighths() {
    let bars: Vec<String> = [0.0, 0.003_125, 0.5, 1.0, 7.0].map(chart::bar).to_vec();
    assert_eq!(bars[..2], ["", "▏"]);
    assert_eq!(bars[2..].iter().map(|bar| bar.chars().count()).collect::<Vec<_>>(), [20, 40, 40]);
}

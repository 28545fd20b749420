//! What offsets are found in the BTF of real kernels, and what is said of those that cannot be.

use super::*;
use expect_test::{expect, expect_file};
use tracer_common::nft::{NFT_FIELDS, Witness};

const MODULES: [&str; 4] = ["x_tables", "ip_tables", "ip6_tables", "arp_tables"];
const WITH_NFTABLES: [&str; 5] = ["x_tables", "ip_tables", "ip6_tables", "arp_tables", "nf_tables"];
const DEBIAN_11: (&str, &str) = ("5.10.0-46-cloud-amd64", "#1 SMP Debian 5.10.262-1 (2026-10-01)");
const OTHER: (&str, &str) = ("6.1.0", "#1 SMP");

const SYMBOLS: Symbols = Symbols {
    hidden: false,
    per_cpu_offset: Some(0xffff_ffff_8230_0000),
    recseq: Some(0x3_a000),
    preempt_count: Some(0x1_f000),
    pcpu_hot: None,
    preemption: false,
    rethook: false,
    fprobe: false,
    replace_table: true,
    ipt_do_table: true,
    ip6t_do_table: true,
    arpt_do_table: false,
    copy_counters: true,
    nft_do_chain: true,
    nft_trace_packet: true,
    nf_tables_commit: true,
    nf_reinject: true,
    nfqnl_reinject: true,
    conntrack_confirm: true,
};

fn path(kernel: &str, file: &str) -> String {
    format!("{}/../tests/data/btf/{kernel}/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Resolves a kernel of the test data, with those modules.
fn resolve_with(
    kernel: &str,
    (release, version): (&str, &str),
    modules: &[&str],
    symbols: &Symbols,
) -> Result<Layout, Unresolved> {
    let read = |name: &str| std::fs::read(path(kernel, &format!("{name}.btf"))).expect("is readable");
    let (vmlinux, modules) = (read("vmlinux"), modules.iter().map(|name| read(name)).collect::<Vec<_>>());
    let vmlinux = Btf::parse(&vmlinux).expect("vmlinux parses");
    let split = |bytes| Btf::parse_split(bytes, &vmlinux).expect("module parses");
    let modules: Vec<_> = modules.iter().map(|bytes| split(bytes)).collect();
    resolve(&Kernel { release, version, vmlinux: &vmlinux, modules: &modules }, symbols)
}

#[track_caller]
fn check_layout(kernel: &str, uname: (&str, &str), modules: &[&str]) -> Layout {
    let layout =
        resolve_with(kernel, uname, modules, &SYMBOLS).unwrap_or_else(|error| panic!("{kernel}: {error}"));
    let offsets: [u32; FIELDS.len()] = zerocopy::transmute!(layout.offsets);
    let mut text = format!("{:?}, hook of {} bytes\n", layout.argument_order, layout.state_hook_bytes);
    for (field, offset) in FIELDS.iter().zip(offsets) {
        text += &format!("{offset:>5} {}.{}\n", field.structure, field.path);
    }
    match &layout.nft {
        Ok(nft) => {
            let witness = if nft.witness == Witness::TraceInfo as u32 { "info" } else { "arguments" };
            text +=
                &format!("traced by {witness}, handle from bit {} at {}\n", nft.rule_shift, nft.rule_word);
            let offsets: [u32; NFT_FIELDS.len()] = zerocopy::transmute!(nft.offsets);
            for (field, offset) in NFT_FIELDS.iter().zip(offsets).filter(|(_, offset)| *offset != ABSENT) {
                text += &format!("{offset:>5} {}.{}\n", field.structure, field.path);
            }
        }
        Err(unresolved) => text += &format!("without nftables: {unresolved}\n"),
    }
    expect_file![path(kernel, "offsets.txt")].assert_eq(&text);
    let absent: Vec<_> = layout.absent.iter().map(Reason::to_string).collect();
    // What was kept of 6.18 has nothing of nftables.
    let expected: &[_] = if kernel == "6.18" {
        &["struct net, field nft.gencursor: struct net has no field nft"]
    } else {
        &[]
    };
    assert_eq!(absent, expected, "{kernel}");
    layout
}

#[track_caller]
fn check_reasons(resolved: Result<Layout, Unresolved>, expected: expect_test::Expect) {
    let reasons: Vec<_> = resolved.expect_err("is refused").0.iter().map(Reason::to_string).collect();
    expected.assert_eq(&reasons.join("\n"));
}

#[test]
fn each_kernel_of_the_matrix_resolves() {
    let kernels = ["6.1", "6.12", "7.3"].map(|kernel| check_layout(kernel, OTHER, &WITH_NFTABLES));
    let kernels = kernels.into_iter().chain([check_layout("6.18", OTHER, &MODULES)]);
    let old = check_layout("5.10", DEBIAN_11, &[]);
    assert_eq!(old.state_hook_bytes, 4);
    assert_eq!(old.argument_order, ArgumentOrder::SkbStateTable);
    assert_eq!((old.offsets.table_private, old.offsets.table_af, old.offsets.table_name), (24, 40, 56));
    for layout in kernels {
        assert_eq!(layout.state_hook_bytes, 1);
        assert_eq!(layout.argument_order, ArgumentOrder::TableSkbState);
        assert_eq!(
            (layout.offsets.table_private, layout.offsets.table_af, layout.offsets.table_name),
            (24, 48, 56)
        );
        assert_eq!(layout.offsets.info_entries, 64);
    }
}

#[test]
fn a_kernel_without_module_btf_has_to_be_known() {
    check_reasons(
        resolve_with("5.10", ("5.10.0", "#1 SMP"), &[], &SYMBOLS),
        expect![[r#"no BTF has a prototype of ipt_do_table, and 5.10.0 (#1 SMP) is not known without it"#]],
    );
    check_reasons(
        resolve_with("6.1", DEBIAN_11, &[], &SYMBOLS),
        expect![[r#"
            no BTF describes struct xt_table
            no BTF describes struct xt_table_info
            5.10.0-46-cloud-amd64 is not the known kernel of that name: struct nf_hook_state, field hook is different"#]],
    );
}

#[test]
fn missing_modules_and_symbols_are_told_together() {
    let symbols = Symbols::default();
    check_reasons(
        resolve_with("6.1", OTHER, &[], &symbols),
        expect![[r#"
            neither legacy tables nor nftables are in the kernel
            /proc/kallsyms has no __per_cpu_offset: the rules' counters cannot be read; the kernel needs KALLSYMS_ALL"#]],
    );
    check_reasons(
        resolve_with("6.1", OTHER, &[], &SYMBOLS),
        expect![[r#"
        no BTF describes struct xt_table
        no BTF describes struct xt_table_info
        no BTF has a prototype of ipt_do_table, and 6.1.0 (#1 SMP) is not known without it"#]],
    );
    check_reasons(
        resolve_with("6.1", OTHER, &MODULES, &Symbols { hidden: true, ..SYMBOLS }),
        expect![[
            r#"/proc/kallsyms shows no addresses; CAP_SYSLOG is needed and kernel.kptr_restrict below 2"#
        ]],
    );
}

#[test]
fn prototypes_give_the_order() {
    let prototype = |types: &[&str]| Prototype {
        params: types.iter().map(|name| btf::Param { name: "", type_name: (*name).to_owned() }).collect(),
        returns: "unsigned int".into(),
    };
    let (skb, state) = ("struct sk_buff *", "const struct nf_hook_state *");
    assert_eq!(order_of(&prototype(&["void *", skb, state])), Some(ArgumentOrder::TableSkbState));
    assert_eq!(order_of(&prototype(&[skb, state, "struct xt_table *"])), Some(ArgumentOrder::SkbStateTable));
    assert_eq!(order_of(&prototype(&[skb, "unsigned int", state, "struct xt_table *"])), None);
}

#[test]
fn check_tells_what_symbols_take_away() {
    let layout = resolve_with("6.1", OTHER, &MODULES, &SYMBOLS).expect("resolves");
    assert_eq!(layout.check(&SYMBOLS), []);
    let reasons = layout.check(&Symbols { recseq: Some(8), ..SYMBOLS });
    assert_eq!(reasons, [Reason::Moved { symbol: "xt_recseq" }]);
    let reasons = layout.check(&Symbols { recseq: None, replace_table: false, ..SYMBOLS });
    let reasons: Vec<_> = reasons.iter().map(Reason::to_string).collect();
    expect![[r#"
        /proc/kallsyms has no xt_recseq: a traversal that another one interrupts on its CPU is not always noticed
        /proc/kallsyms has no xt_replace_table: two replacements of a table during one traversal are not noticed"#]]
    .assert_eq(&reasons.join("\n"));
}

#[test]
fn symbols_are_read_from_kallsyms() {
    let text = b"0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _text\n\
        ffffffff82300000 D __per_cpu_offset\n\
        000000000003a000 d xt_recseq\t[x_tables]\n\
        000000000001f000 D __preempt_count\n\
        ffffffffc0400000 t xt_replace_table\t[x_tables]\n\
        ffffffffc0400100 t xt_copy_counters\t[x_tables]\n\
        ffffffffc0500000 t ipt_do_table\t[ip_tables]\n\
        ffffffffc0500800 t ip6t_do_table.cold\t[ip6_tables]\n\
        short line\n";
    let without = Symbols {
        nft_do_chain: false,
        nft_trace_packet: false,
        nf_tables_commit: false,
        nf_reinject: false,
        conntrack_confirm: false,
        ..SYMBOLS
    };
    let expected = Symbols { ip6t_do_table: false, nfqnl_reinject: false, ..without };
    assert_eq!(Symbols::parse(text), expected);
    let hidden = b"0000000000000000 T _text\n0000000000000000 D __per_cpu_offset\n";
    assert_eq!(Symbols::parse(hidden), Symbols { hidden: true, ..Symbols::default() });
}

proptest::proptest! {
    #[test]
    fn any_kallsyms_do_no_harm(bytes: Vec<u8>) {
        Symbols::parse(&bytes);
    }
}

#[test]
fn fields_have_to_be_whole_and_as_wide_as_they_are_read() {
    let member = |offset_bits, size_bits| Member { offset_bits, size_bits, id: TypeId::VOID };
    assert_eq!(in_bytes(&member(64, 32), &[1, 4]), Ok(Place { offset: 8, bytes: 4 }));
    assert_eq!(in_bytes(&member(65, 8), &[1]), Err(Cause::BitField));
    let cause = in_bytes(&member(64, 16), &[1, 4]).expect_err("is too wide");
    expect!["it has 2 bytes, not 1 or 4"].assert_eq(&cause.to_string());
}

#[test]
fn structures_of_one_name_have_to_agree() {
    let field = FIELDS.iter().find(|field| field.name == "net_inum").expect("is there");
    let bytes =
        ["6.1", "6.12"].map(|kernel| std::fs::read(path(kernel, "vmlinux.btf")).expect("is readable"));
    let [one, other] = bytes.each_ref().map(|bytes| Btf::parse(bytes).expect("parses"));
    let [first, second] = [&one, &other].map(|btf| (btf, btf.find(Kind::Struct, "net").expect("is there")));
    assert_eq!(place(&vec![first, first], field, widths(field)), Ok(Place { offset: 144, bytes: 4 }));
    let reason = place(&vec![first, second], field, widths(field)).expect_err("is doubtful");
    expect!["struct net, field ns.inum: it is in several places: different structures have that name"]
        .assert_eq(&reason.to_string());
}

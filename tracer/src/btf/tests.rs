//! Real BTF, cut down, and BTF that is broken.

use super::*;
use proptest::prelude::*;

fn read(kernel: &str, name: &str) -> Vec<u8> {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/../tests/data/btf/{kernel}/{name}.btf");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// BTF with these types, ids from 1. Names are offsets into `strings`.
fn write(types: &[&[u32]], strings: &str) -> Vec<u8> {
    let types: Vec<u8> = types.concat().into_iter().flat_map(u32::to_le_bytes).collect();
    let header = [24, 0, types.len(), types.len(), strings.len()].map(|word| (word as u32).to_le_bytes());
    [&[0x9f, 0xeb, 1, 0], header.as_flattened(), &types, strings.as_bytes()].concat()
}

const fn info(kind: Kind, rows: u32) -> u32 {
    (kind as u32) << 24 | rows
}

const FLAG: u32 = 1 << 31;
const STRINGS: &str = "\0s\0a\0b\0c\0";
const S: u32 = 1;
const A: u32 = 3;
const B: u32 = 5;
const C: u32 = 7;
const INT: &[u32] = &[0, info(Kind::Int, 0), 4, 32];

#[track_caller]
fn check_member(types: &[&[u32]], path: &str, expected: Result<(u32, u32)>) {
    let bytes = write(types, STRINGS);
    let btf = Btf::parse(&bytes).expect("parses");
    let id = btf.find(Kind::Struct, "s").expect("is there");
    assert_eq!(btf.member(id, path).map(|member| (member.offset_bits, member.size_bits)), expected);
}

#[test]
fn steps_into_named_and_anonymous_structures() {
    let anonymous: &[u32] = &[0, info(Kind::Union, 2), 8, A, 1, 0, B, 1, 32];
    let alias: &[u32] = &[C, info(Kind::Typedef, 0), 2];
    let outer: &[u32] = &[S, info(Kind::Struct, 2), 24, 0, 2, 64, C, 3, 128];
    let types = [INT, anonymous, alias, outer];
    check_member(&types, "a", Ok((64, 32)));
    check_member(&types, "b", Ok((96, 32)));
    check_member(&types, "c", Ok((128, 64)));
    check_member(&types, "c.b", Ok((160, 32)));
    let missing = |structure: &str| Error::NoField { structure: structure.to_owned(), field: "x".to_owned() };
    check_member(&types, "x", Err(missing("struct s")));
    check_member(&types, "c.x", Err(missing("c")));
    check_member(
        &types,
        "a.b",
        Err(Error::WrongKind { id: TypeId(1), found: Kind::Int, expected: "struct or union" }),
    );
}

#[test]
fn tells_bit_fields_of_both_forms() {
    let narrow: &[u32] = &[0, info(Kind::Int, 0), 4, 3 << 16 | 5];
    check_member(&[INT, &[S, FLAG | info(Kind::Struct, 1), 4, A, 1, 7 << 24 | 9]], "a", Ok((9, 7)));
    check_member(&[narrow, &[S, info(Kind::Struct, 1), 4, A, 1, 32]], "a", Ok((35, 5)));
}

#[test]
fn gives_up_on_circles() {
    let itself: &[u32] = &[S, info(Kind::Struct, 2), 8, 0, 1, 0, 0, 1, 0];
    check_member(&[itself], "a", Err(Error::TooDeep(TypeId(1))));
    let alias: &[u32] = &[0, info(Kind::Typedef, 0), 2];
    check_member(&[&[S, info(Kind::Struct, 1), 8, A, 2, 0], alias], "a", Err(Error::TooDeep(TypeId(2))));
    let array: &[u32] = &[0, info(Kind::Array, 0), 0, 2, 2, 1];
    check_member(&[&[S, info(Kind::Struct, 1), 8, A, 2, 0], array], "a", Err(Error::TooDeep(TypeId(2))));
    let wide: Vec<u32> = [S, info(Kind::Struct, 1000), 8].into_iter().chain([0, 1, 0].repeat(1000)).collect();
    check_member(&[&wide], "a", Err(Error::TooDeep(TypeId(1))));
    let pointer: &[u32] = &[0, info(Kind::Ptr, 0), 1];
    let bytes = write(&[pointer], STRINGS);
    assert!(Btf::parse(&bytes).expect("parses").describe(TypeId(1)).starts_with("? *"));
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let array = |element| [0, info(Kind::Array, 0), 0, element, 1, u32::MAX];
    let types = [INT, &array(1), &array(2), &array(3), &[S, info(Kind::Struct, 2), 8, A, 2, 0, B, 4, 0]];
    check_member(&types, "a", Err(Error::TooLarge(TypeId(5))));
    check_member(&types, "b", Err(Error::TooLarge(TypeId(4))));
}

#[test]
fn enumerations_keep_sign_and_width() {
    let plain: &[u32] = &[S, info(Kind::Enum, 1), 4, A, u32::MAX];
    let signed: &[u32] = &[A, FLAG | info(Kind::Enum, 1), 4, A, u32::MAX];
    let large: &[u32] = &[B, info(Kind::Enum64, 1), 8, A, 1, 2];
    let bytes = write(&[plain, signed, large], STRINGS);
    let btf = Btf::parse(&bytes).expect("parses");
    assert_eq!(btf.enum_value("s", "a"), Ok(0xffff_ffff));
    assert_eq!(btf.enum_value("a", "a"), Ok(-1));
    assert_eq!(btf.enum_value("b", "a"), Ok(0x2_0000_0001));
    let missing = Error::NoConstant { enumeration: "b".into(), constant: "c".into() };
    assert_eq!(btf.enum_value("b", "c"), Err(missing));
}

#[test]
fn every_kind_is_skipped_by_its_length() {
    let types: &[&[u32]] = &[
        INT,
        &[0, info(Kind::Ptr, 0), 1],
        &[0, info(Kind::Array, 0), 0, 1, 1, 3],
        &[0, info(Kind::Struct, 1), 4, A, 1, 0],
        &[0, info(Kind::Union, 1), 4, A, 1, 0],
        &[0, info(Kind::Enum, 1), 4, A, 1],
        &[A, FLAG | info(Kind::Fwd, 0), 0],
        &[A, info(Kind::Typedef, 0), 1],
        &[0, info(Kind::Volatile, 0), 1],
        &[0, info(Kind::Const, 0), 2],
        &[0, info(Kind::Restrict, 0), 2],
        &[A, info(Kind::Func, 1), 13],
        &[0, info(Kind::FuncProto, 1), 0, A, 2],
        &[A, info(Kind::Var, 0), 1, 1],
        &[A, info(Kind::Datasec, 1), 4, 14, 0, 4],
        &[A, info(Kind::Float, 0), 8],
        &[A, info(Kind::DeclTag, 0), 12, u32::MAX],
        &[A, info(Kind::TypeTag, 0), 9],
        &[A, info(Kind::Enum64, 1), 8, A, 1, 0],
        &[S, info(Kind::Struct, 0), 12],
    ];
    let bytes = write(types, STRINGS);
    let btf = Btf::parse(&bytes).expect("parses");
    assert_eq!(btf.find(Kind::Struct, "s"), Ok(TypeId(20)));
    let described: Vec<_> = btf.ids().map(|id| btf.describe(id)).collect();
    expect_test::expect![[r#"
        (anonymous)
        (anonymous) *
        (anonymous)[3]
        struct (anonymous)
        union (anonymous)
        enum (anonymous)
        union a
        a
        volatile (anonymous)
        (anonymous) * const
        (anonymous) * restrict
        a
        function
        a
        a
        a
        a
        volatile (anonymous)
        enum a
        struct s"#]]
    .assert_eq(&described.join("\n"));
    assert_eq!(btf.function("a").expect("is there").to_string(), "void ((anonymous) * a)");
    for length in 0..bytes.len() {
        assert!(Btf::parse(&bytes[..length]).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn refuses_what_it_cannot_read() {
    let parse = |bytes: &[u8]| Btf::parse(bytes).map(drop);
    let good = write(&[INT], STRINGS);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(parse(&good), Ok(()));
    assert_eq!(parse(b""), Err(Error::Header("shorter than its header")));
    assert_eq!(parse(&with(0, 0)), Err(Error::Header("no BTF magic")));
    assert_eq!(parse(&[0xeb, 0x9f, 1, 0]), Err(Error::Header("big-endian")));
    assert_eq!(parse(&with(2, 2)), Err(Error::Header("not version 1")));
    assert_eq!(parse(&with(4, 20)), Err(Error::Header("header too short")));
    assert_eq!(parse(&with(24 + 7, 20)), Err(Error::UnknownKind { id: TypeId(1), kind: 20 }));
    assert_eq!(parse(&with(24 + 4, 1)), Ok(()), "an int has no rows");
    assert_eq!(parse(&with(24 + 7, Kind::Struct as u8)), Err(Error::Truncated(TypeId(2))));
}

#[test]
fn a_longer_header_is_skipped() {
    let mut bytes = write(&[INT], STRINGS);
    bytes[4] += 8;
    bytes.splice(24..24, [0; 8]);
    assert_eq!(Btf::parse(&bytes).map(|btf| btf.end_id()), Ok(2));
}

#[test]
fn a_module_continues_its_base() {
    let (base, module) = (read("6.1", "vmlinux"), read("6.1", "x_tables"));
    let base = Btf::parse(&base).expect("vmlinux parses");
    let module = Btf::parse_split(&module, &base).expect("x_tables parses");
    assert_eq!(module.ids().next(), Some(TypeId(base.end_id())));
    let table = module.find(Kind::Struct, "xt_table").expect("is in the module");
    assert_eq!(module.member(table, "name").map(|name| name.offset_bytes()), Ok(Some(56)));
    assert_eq!(module.describe(table), "struct xt_table");
    assert_eq!(module.find(Kind::Struct, "sk_buff"), base.find(Kind::Struct, "sk_buff"));
    assert_eq!(base.find(Kind::Struct, "xt_table").unwrap_err().to_string(), "BTF has no struct xt_table");
}

#[test]
fn drop_reasons_differ_between_kernels() {
    let value = |kernel| {
        let bytes = read(kernel, "vmlinux");
        Btf::parse(&bytes)
            .expect("parses")
            .enum_value("skb_drop_reason", "SKB_DROP_REASON_NETFILTER_DROP")
            .ok()
    };
    let values = ["5.10", "6.1", "6.12", "6.18", "7.3"].map(value);
    assert_eq!(values, [None, Some(7), Some(11), Some(12), Some(12)]);
}

/// Asks everything of everything.
fn exercise(btf: &Btf<'_>) {
    for id in btf.ids().take(64).chain([TypeId(0), TypeId(u32::MAX)]) {
        let _ = (btf.size_of(id), btf.describe(id), btf.member(id, "a"), btf.member(id, "ns.inum"));
        let Ok(record) = btf.get(id) else { continue };
        let name = btf.string(record.name);
        let _ = (btf.find(record.kind, name), btf.function(name), btf.enum_value(name, name));
    }
}

fn mutated(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edit = (24..bytes.len(), any::<u8>());
    proptest::collection::vec(edit, 1..12).prop_map(move |edits| {
        let mut bytes = bytes.clone();
        edits.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes
    })
}

/// Type sections of plausible records that refer to each other at random.
fn tangled() -> impl Strategy<Value = Vec<u8>> {
    let id = 0..12_u32;
    let body = proptest::collection::vec(id.clone(), 0..12);
    let record = (1..20_u32, any::<bool>(), id, body).prop_map(|(kind, flag, word, mut body)| {
        let each = [0, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 3][kind as usize];
        let rows = body.len().checked_div(each).unwrap_or(0);
        let fixed = [0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0][kind as usize];
        body.resize(rows * each + fixed, 1);
        [vec![word % 8, kind << 24 | rows as u32 | if flag { FLAG } else { 0 }, word], body].concat()
    });
    proptest::collection::vec(record, 1..12).prop_map(|records| {
        let records: Vec<&[u32]> = records.iter().map(Vec::as_slice).collect();
        write(&records, STRINGS)
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>) {
        let _ = Btf::parse(&bytes).map(|btf| exercise(&btf));
        let bytes = [&write(&[], "")[..24], &bytes].concat();
        let _ = Btf::parse(&bytes).map(|btf| exercise(&btf));
    }

    #[test]
    fn tangled_types_do_no_harm(bytes in tangled()) {
        exercise(&Btf::parse(&bytes).expect("parses"));
    }

    #[test]
    fn mutated_types_do_no_harm(base in mutated(read("6.1", "vmlinux")), module in mutated(read("6.1", "ip_tables"))) {
        if let Ok(base) = Btf::parse(&base) {
            exercise(&base);
            let _ = Btf::parse_split(&module, &base).map(|btf| exercise(&btf));
        }
    }
}

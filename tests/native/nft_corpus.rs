//! Rules as programs make them.

use nftracer_tests::corpus::corpus;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[Test { name: "nft_corpus", run: || corpus(&crate::netns("k")?) }];

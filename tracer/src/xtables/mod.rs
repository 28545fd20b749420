//! The legacy blob: what getsockopt returns and what the kernel holds, fixed parts only.

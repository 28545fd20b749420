//! What a packet looked like at each step.

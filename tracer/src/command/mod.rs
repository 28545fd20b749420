//! One module per subcommand; the only place that knows all layers.

"""What a worker lets others see of its work: metrics, traces, statistics, checks of quality."""

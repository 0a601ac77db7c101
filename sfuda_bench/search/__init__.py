"""Questions asked of many cells: Optuna studies, fixed pools and ablations."""

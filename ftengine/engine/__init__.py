"""The actions of a user on recipes and runs: fine-tune, plan, evaluate, predict, merge, export and others."""

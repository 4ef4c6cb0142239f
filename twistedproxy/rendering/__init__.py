"""Pictures as jobs: planner, runner, pool of child processes, child."""

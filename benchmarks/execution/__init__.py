"""The parts of `training_cost.py`: protocols, trainings, speed and memory, figures."""

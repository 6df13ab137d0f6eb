"""Stages: encoders plus weighted objectives, optimised by one LightningModule, resumed bit for bit."""

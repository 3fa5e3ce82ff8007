"""Prediction of phenotypes: features and people in, tables out."""

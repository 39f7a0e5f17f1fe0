"""Runnable configurations, one per method; `lit-posttrain configs` lists them."""

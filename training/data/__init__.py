"""Batches of degraded clips from files of videos and photographs.

From the inside out: scenes, sources, camera; dataset (prepared clips on disk); cutting, preparing; sampler, pool;
workers, gpu_feeder, resident_pool; loader, cost.
"""

"""Models on OpenAI-compatible servers: a vLLM server of one's own, or a vendor's.

`options` says what can be set, `calls` answers a judge's calls, `teacher` tells a served teacher's
likeliest tokens. Below them `connection` sends requests until they are answered, `pace` decides how
many at once, `faults` what a failure means, and `spending` what they may cost.
"""

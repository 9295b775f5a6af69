"""Sessions on OpenVINO, for CPUs with BF16 arithmetic (extra ``openvino``)."""

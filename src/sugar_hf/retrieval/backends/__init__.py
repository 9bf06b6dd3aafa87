"""Where vectors are searched: FAISS in this process, or Milvus."""

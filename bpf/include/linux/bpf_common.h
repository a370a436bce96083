/* BCC's copy of bpf.h includes it for classic BPF opcodes, which nothing here names. */

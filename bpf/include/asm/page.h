/* helpers.h sizes its ring buffers in pages: PAGE_SIZE comes as -D from the running system (4, 16 or 64 KiB on arm64). */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif

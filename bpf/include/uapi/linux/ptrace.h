/* As linux/ptrace.h: BCC programs include this spelling. */
#include <asm/ptrace.h>

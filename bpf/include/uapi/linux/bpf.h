/* BCC brings bpf.h's own content (-include /virtual/include/bcc/bpf.h); what is missing here is the types alone. */
#include <linux/types.h>

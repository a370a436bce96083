/* The kernel side of netprofiler: one BCC unit. netprofiler/sources/kernel.py puts the files below in place of their
 * include lines (BCC rewrites map calls in the main file only), and says the -D that each of them names at its head. */
#include <uapi/linux/ptrace.h>
#include "events.h"
#include "arch.h"
#include "socket.h"
#include "maps.h"
#include "detect.h"
#include "syscalls.h"
#include "tally.h"
#include "sys_exit.h"
#include "socket_events.h"
#include "tls.h"

/* What tests/kernel/test_uprobes.py probes: each line on standard input says how often to call `target`. */
#include <stdio.h>
#include <stdlib.h>

#ifndef ADDED
#define ADDED 1
#endif

__attribute__((noinline)) int target(int value) {
	__asm__ volatile("" : "+r"(value));
	return value + ADDED;
}

__attribute__((noinline)) int other(int value) {
	__asm__ volatile("" : "+r"(value));
	return value + 2;
}

int main(void) {
	char line[64];

	while (fgets(line, sizeof(line), stdin)) {
		int sum = 0;

		for (int left = atoi(line); left > 0; left--)
			sum += target(left) + other(left);
		printf("%d\n", sum);
		fflush(stdout);
	}
	return 0;
}

/* Runs the fuzzer's inputs once each, without libFuzzer: for gcc, valgrind and emulators. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
main(int count, char **paths)
{
	static uint8_t bytes[1 << 20];

	for (int i = 1; i < count; i++)
	{
		FILE	   *file = fopen(paths[i], "rb");

		if (file == NULL)
		{
			perror(paths[i]);
			return EXIT_FAILURE;
		}
		LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, sizeof bytes, file));
		fclose(file);
	}
	printf("%d inputs\n", count - 1);
	return EXIT_SUCCESS;
}

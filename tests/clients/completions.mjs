// openai in JavaScript against the server at argv[2]: prints what it found as one JSON object.
import OpenAI from "openai";

const [address, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "-", maxRetries: 0 });
const request = { model: "demo", prompt, max_tokens: 12 };

const plain = await client.completions.create(request);
let streamed = "";
let usage = null;
for await (const chunk of await client.completions.create({
  ...request, stream: true, stream_options: { include_usage: true },
})) {
  streamed += chunk.choices.map(choice => choice.text).join("");
  usage = chunk.usage ?? usage;
}
const models = (await client.models.list()).data.map(model => model.id);
const error = await client.completions.create({ ...request, max_tokens: 9999 }).catch(e => e);

console.log(JSON.stringify({
  plain: plain.choices[0].text,
  streamed,
  tokens: usage.completion_tokens,
  models,
  error: [error instanceof OpenAI.BadRequestError, error.param, error.code],
}));

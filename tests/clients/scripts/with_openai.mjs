// What users of the openai package for Node call, with the answers as JSON. Runs in .clients/node.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.TENUTO_URL}/v1`,
  apiKey: "none",
  maxRetries: 0,
});
const model = "tenuto-demo";
const messages = [{ role: "user", content: "Hello!" }];
const colours = [{ role: "user", content: "Name eight colours in any order." }];

const chat = (fields) => client.chat.completions.create({ model, messages, ...fields });
const text = (fields) => client.completions.create({ model, prompt: "Hello!", max_tokens: 64, ...fields });

async function refused(request) {
  try {
    await request();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, param: error.param, code: error.code };
  }
  return null;
}

async function gathered(stream) {
  const said = { text: "", roles: [], finish: [], usage: [] };
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      said.text += choice.delta?.content ?? choice.text ?? "";
      if (choice.delta?.role) said.roles.push(choice.delta.role);
      if (choice.finish_reason) said.finish.push(choice.finish_reason);
    }
    if (chunk.usage) said.usage.push(chunk.usage.completion_tokens);
  }
  return said;
}

async function left() {
  const stream = await chat({ stream: true, temperature: 1, max_tokens: 8000, ignore_eos: true });
  let chunks = 0;
  for await (const chunk of stream) {
    chunks += chunk.choices.length;
    if (chunks === 3) break;
  }
  return chunks;
}

async function helper() {
  const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
  let said = "";
  runner.on("content", (piece) => (said += piece));
  const whole = await runner.finalChatCompletion();
  return { said, whole: whole.choices[0].message.content };
}

const several = await chat({ messages: colours, n: 3, stop: [","], logprobs: true, top_logprobs: 2 });
const answer = await chat({ temperature: 0 });
const { response } = await chat({ temperature: 0, top_a: 1, guidance_scale: 2 }).withResponse();

console.log(
  JSON.stringify({
    models: (await client.models.list()).data.map((card) => card.id),
    model: (await client.models.retrieve(model)).id,
    chat: answer.choices[0].message.content,
    usage: answer.usage.total_tokens - answer.usage.prompt_tokens - answer.usage.completion_tokens,
    several: several.choices.map((choice) => choice.message.content),
    top: several.choices[0].logprobs.content.map((entry) => entry.top_logprobs.length),
    stream: await gathered(await chat({ temperature: 0, stream: true, stream_options: { include_usage: true } })),
    helper: await helper(),
    text: (await text({ temperature: 0 })).choices[0].text,
    batch: (await text({ prompt: ["Hello!", "Goodbye!"], temperature: 0 })).choices.map((choice) => choice.text),
    textStream: await gathered(await text({ temperature: 0, stream: true })),
    bestOf: (await text({ n: 2, best_of: 4, seed: 1 })).choices.map((choice) => choice.index),
    minP: (await chat({ messages: colours, temperature: 1.5, min_p: 1 })).choices[0].message.content,
    greedy: (await chat({ messages: colours, temperature: 0 })).choices[0].message.content,
    ignored: response.headers.get("x-tenuto-ignored-params"),
    refused: await refused(() => chat({ temperature: 3 })),
    unknown: await refused(() => chat({ model: "no-such-model" })),
    missing: await refused(() => client.models.retrieve("no-such-model")),
    left: await left(),
  }),
);
